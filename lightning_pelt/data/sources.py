"""Where the rows of a data module come from: files, saved data sets, or the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from datasets import Dataset

from lightning_pelt.data._columns import Column
from lightning_pelt.data._file_patterns import is_pattern, read_pattern
from lightning_pelt.data._saved_rows import is_saved, read_saved
from lightning_pelt.data._table_io import Table, convert_columns, read_file, read_hub

HUB_REMEDY = "Without a network, name files instead: train=, dev=, test= without dataset=."


class Sources:
    """The rows of the splits of a data module that names them one by one.

    A place is a file, a pattern of files (``"part-*.jsonl"``, whose rows follow each other in the
    order of the names), or a folder that ``Dataset.save_to_disk`` wrote. With ``dataset`` it is the
    name of a split of that data set: one on the hub, or a folder that ``DatasetDict.save_to_disk``
    wrote.

    Args:
        owner: name of the data module, for errors.
        train: a place.
        dev: likewise.
        test: likewise.
        predict: likewise, without labels. By default the rows of ``test`` are predicted.
        dataset: name of a data set on the hub, or its folder.
        config: configuration of the data set, if it has several.
        dev_share: without ``dev``, the share of the training rows to use as dev rows; 0 for no dev
            split.
        data_seed: seed of the choice of those rows.
        read_folder: reads a folder of another kind for a split, such as one of images.

    Raises:
        ValueError: no split is given, or ``dev_share`` is not a share.
    """

    def __init__(
        self,
        owner: str,
        *,
        train: str | None = None,
        dev: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        dataset: str | None = None,
        config: str | None = None,
        dev_share: float = 0.1,
        data_seed: int = 42,
        read_folder: Callable[[Path, str], Table] | None = None,
    ) -> None:
        given = {"train": train, "dev": dev, "test": test, "predict": predict}
        self.locations = {split: each for split, each in given.items() if each is not None}
        if not self.locations:
            raise ValueError(f"{owner} needs rows: give train, dev, test or predict")
        if not 0 <= dev_share < 1:
            raise ValueError(f"dev_share is {dev_share}, expected at least 0 and less than 1")
        self.dataset = dataset
        self.config = config
        self.dev_share = dev_share
        self.data_seed = data_seed
        self.read_folder = read_folder

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The rows of each split as they are read."""
        return {split: self._table(split, location) for split, location in self.locations.items()}

    def _table(self, split: str, location: str) -> Table:
        if self.dataset is not None and is_saved(self.dataset):
            return read_saved(self.dataset, split=location)
        if self.dataset is not None:
            return read_hub(self.dataset, self.config, location, remedy=HUB_REMEDY)
        if is_saved(location):
            return read_saved(location)
        folder = Path(location).expanduser()
        if self.read_folder is not None and folder.is_dir():
            return self.read_folder(folder, split)
        return read_pattern(location) if is_pattern(location) else read_file(location)

    def read(self, columns: Callable[[str], Mapping[str, Column]]) -> dict[str, Dataset]:
        """The converted rows of each split; without ``dev`` a share of train is the dev split.

        Args:
            columns: gives the columns of a row of a split, and the columns of the file that they
                come from.

        Raises:
            ValueError: a value cannot be converted, or train has a single row for train and dev.
        """
        splits = {
            split: convert_columns(table, columns(split), desc=f"reading {split}")
            for split, table in self.tables.items()
        }
        if "train" in splits and "dev" not in splits and self.dev_share:
            if len(splits["train"]) < 2:
                raise ValueError(
                    f"train has 1 row, and dev_share {self.dev_share} takes at least one of it as "
                    "the dev split: give dev=, more rows, or dev_share=0"
                )
            halves = splits["train"].train_test_split(self.dev_share, seed=self.data_seed)
            splits.update(train=halves["train"], dev=halves["test"])
        return splits
