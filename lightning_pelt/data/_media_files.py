"""Images and sounds as rows: a file or the content of one, checked when the rows are read."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from io import BytesIO
from os import fspath
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, ClassVar

from datasets import Dataset, Value
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_pelt.data._table_io import Table

FILE, LABEL = "file", "label"  # columns of the rows of folders


@dataclass(frozen=True)
class MediaFile:
    """The path of a file, or its content, as data sets with images and sounds store them.

    Args:
        folder: where relative paths start.
    """

    folder: str = ""
    feature: ClassVar[Any] = {"path": Value("string"), "bytes": Value("binary")}

    def __call__(self, value: Any) -> dict[str, Any]:
        if isinstance(value, dict) and value.get("bytes"):
            return {"path": value.get("path"), "bytes": value["bytes"]}
        name = value.get("path") if isinstance(value, dict) else value
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{shortened(value)} is not the path of a file")
        path = Path(self.folder).expanduser() / Path(name).expanduser()
        if not path.is_file():
            raise ValueError(f"there is no file {path}{_near(path)}")
        return {"path": str(path), "bytes": None}


def source_of(value: dict[str, Any]) -> str | BytesIO:
    """What a decoder reads: the path, or the content as a file."""
    return value["path"] if value["bytes"] is None else BytesIO(value["bytes"])


def name_of(value: dict[str, Any]) -> str:
    """The name of a file in errors."""
    return value["path"] or f"one of {len(value['bytes'])} bytes"


def read_folder(folder: Path, suffixes: frozenset[str], *, labelled: bool) -> Table:
    """The files below a folder, as rows with columns ``file`` and ``label``.

    Args:
        folder: with a folder for each class, unless the files have no labels.
        suffixes: of the files that are rows, in lower case. A warning counts the others.
        labelled: whether the name of the folder of a file is its label.

    Raises:
        ValueError: there is no file, or one lies outside the folders of the classes.
    """
    visible = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]
    files = [path for path in visible if path.suffix.lower() in suffixes]
    kinds = ", ".join(sorted(suffixes))
    if not files:
        raise ValueError(f"{folder} has no files that end in {kinds}")
    if others := [path for path in visible if path not in set(files)]:
        rank_zero_warn(
            f"{folder}: {len(others)} files do not end in {kinds} and are left out, such as "
            f"{others[0]}"
        )
    columns: dict[str, list[str]] = {FILE: [str(path.resolve()) for path in files]}
    if labelled:
        places = [path.relative_to(folder).parts for path in files]
        for path, place in zip(files, places, strict=True):
            if len(place) < 2:
                raise ValueError(
                    f"{path} lies in no folder of a class: expected {folder}/CLASS/{path.name}"
                )
        columns[LABEL] = [place[0] for place in places]
    return Table(Dataset.from_dict(columns), str(folder))


def folder_of(location: str) -> str:
    """Where the relative paths in the rows of a place start."""
    path = Path(fspath(location)).expanduser()
    return str(path if path.is_dir() else path.parent)


def _near(path: Path) -> str:
    files = [file.name for file in path.parent.glob("*")] if path.parent.is_dir() else []
    near = get_close_matches(path.name, files, n=1)
    return f": did you mean {near[0]}?" if near else ""
