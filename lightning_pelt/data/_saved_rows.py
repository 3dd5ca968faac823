"""Rows of folders that ``save_to_disk`` of datasets wrote."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from datasets import DatasetDict, load_from_disk

from lightning_pelt.data._table_io import Table, undecoded
from lightning_pelt.utils.errors import unknown

FILES = ("state.json", "dataset_dict.json")  # of a Dataset, and of a DatasetDict


def is_saved(location: str | Path) -> bool:
    """Whether a place is a folder that ``save_to_disk`` wrote."""
    folder = Path(location).expanduser()
    return any((folder / name).is_file() for name in FILES)


def read_saved(location: str, *, split: str | None = None) -> Table:
    """The rows of a saved data set, or of one split of a saved dictionary of data sets.

    Raises:
        ValueError: the folder is damaged or has no rows, it has several splits and none is named,
            or not the split that is named.
    """
    folder = Path(location).expanduser()
    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # datasets raises many types for unreadable files
        raise ValueError(f"{folder}: truncated or not a saved data set ({error})") from error
    source = str(folder)
    if isinstance(saved, DatasetDict):
        if split is None:
            raise ValueError(
                f"{folder} has the splits {', '.join(saved)}: name the folder as dataset=, and the "
                "splits as train=, dev= and test="
            )
        if split not in saved:
            raise ValueError(f"{folder}: {unknown('split', split, list(saved))}")
        saved, source = saved[split], f"{folder} ({split})"
    elif split is not None:
        raise ValueError(
            f"{folder} is one data set without splits, and the split {split!r} is named: name the "
            f"folder itself, such as train={location!r}, without dataset="
        )
    if not len(saved):
        raise ValueError(f"{source} has no rows")
    try:
        saved.data.table.validate(full=True)  # texts that are not UTF-8, and wrong offsets
    except pa.ArrowException as error:
        raise ValueError(f"{source}: its rows are damaged ({error})") from error
    # A format hides columns, or makes tensors of the values.
    return Table(undecoded(saved.with_format(None)), source)
