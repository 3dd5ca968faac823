"""Rows from files and from the hub by way of ``datasets``, and errors that say where they are."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite, nan
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from datasets.fingerprint import Hasher

from lightning_pelt.errors import unknown

FORMAT = 1  # in the name of all that is cached: raise it when the same file becomes other tokens

# Kind of file -> the reader of `datasets`, and its options. Tab-separated files have no quoting:
# a row is a line, and a lone quotation mark in it swallows nothing.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"delimiter": "\t", "quoting": csv.QUOTE_NONE}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}


class Table(NamedTuple):
    """Rows, and the words in which an error calls them."""

    rows: Dataset
    source: str


def read_file(path: str | Path, *, strings: Sequence[str] = (), **options: Any) -> Table:
    """The rows of a CSV, TSV, JSONL or Parquet file.

    Args:
        path: the file; its suffix says what it is.
        strings: columns whose values are kept as they are written, where the file has no types.
        options: further ones of the reader.

    Raises:
        FileNotFoundError: naming the nearest file of that folder.
        ValueError: for another kind of file, or one that is damaged: file, row and cause.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise ValueError(f"{path}: {unknown('kind of file', path.suffix, READERS)}")
    if not path.is_file():
        files = [file.name for file in path.parent.glob("*")] if path.parent.is_dir() else []
        near = get_close_matches(path.name, files, n=1)
        raise FileNotFoundError(f"no file {path}" + (f": did you mean {near[0]}?" if near else ""))
    kind, defaults = READERS[path.suffix]
    if kind == "csv":
        defaults = {**defaults, "na_filter": False, "converters": dict.fromkeys(strings, str)}
    with _named(path):
        rows = load_dataset(kind, data_files=str(path), split="train", **defaults, **options)
    return Table(rows, str(path))


def read_hub(name: str, config: str | None, split: str, *, remedy: str) -> Table:
    """The rows of one split of a data set of the hub.

    Raises:
        OSError: if it can neither be reached nor is cached, with the ``remedy``.
    """
    try:
        rows = load_dataset(name, config, split=split)
    except OSError as error:
        raise OSError(f"the data set {name!r} cannot be reached ({error}). {remedy}") from error
    return Table(rows, f"{name} ({split})")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say which file, which row and why, where ``datasets`` says that something went wrong."""
    try:
        yield
    except StopIteration:
        raise ValueError(f"{path} has no rows") from None
    except Exception as error:
        cause = str(error.__cause__ or error).strip()
        row = _bad_line(path) if path.suffix == ".jsonl" else None
        where = f"{path}, row {row}" if row else f"{path}"
        raise ValueError(f"{where}: truncated, or no {path.suffix[1:]} file ({cause})") from error


def _bad_line(path: Path) -> int | None:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                json.loads(line)
            except ValueError:
                if line.strip():
                    return number
    return None


def check_column(table: Table, column: str) -> None:
    """Raise a ``ValueError`` with the file and the nearest column if it has no such ``column``."""
    if column not in table.rows.column_names:
        raise ValueError(f"{table.source}: {unknown('column', column, table.rows.column_names)}")


def uniform(table: Table, columns: Mapping[str, Column], *, desc: str) -> Dataset:
    """The rows with these columns only, converted; cached where ``table`` is.

    Args:
        table: what was read.
        columns: new name -> where its values come from, and what they become.
        desc: the progress bar's words.

    Raises:
        ValueError: for a column that is not there, or a value that cannot be converted: the file,
            the row (the first is 1) and the column are named.
    """
    for column in columns.values():
        check_column(table, column.name)
    raw, source = table

    def convert(rows: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        done: dict[str, list[Any]] = {name: [] for name in columns}
        for name, column in columns.items():
            for index, value in zip(indices, rows[column.name], strict=True):
                try:
                    done[name].append(column.kind(value))
                except (TypeError, ValueError) as error:
                    place = f"{source}, row {index + 1}, column {column.name!r}"
                    raise ValueError(f"{place}: {error}") from None
        return done

    return raw.map(
        convert,
        batched=True,
        with_indices=True,
        remove_columns=raw.column_names,
        features=Features({name: Value(column.kind.dtype) for name, column in columns.items()}),
        new_fingerprint=Hasher.hash((raw._fingerprint, FORMAT, dict(columns))),
        desc=desc,
    )


class Column(NamedTuple):
    """A column of a file, and the kind of its values."""

    name: str
    kind: Text | Number | Class


@dataclass(frozen=True)
class Text:
    """A text with something in it, unless it ``may_be_empty``."""

    may_be_empty: bool = False
    dtype: ClassVar[str] = "string"

    def __call__(self, value: Any) -> str:
        text = "" if value is None else str(value)
        if not self.may_be_empty and not text.strip():
            raise ValueError("the text is empty")
        return text


@dataclass(frozen=True)
class Number:
    """A finite number."""

    dtype: ClassVar[str] = "float32"

    def __call__(self, value: Any) -> float:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = nan
        if not isfinite(number):
            raise ValueError(f"{value!r} is not a number")
        return number


@dataclass(frozen=True)
class Class:
    """The index of a label: the name of one, or, where ``indexed``, such an index itself."""

    labels: tuple[str, ...]
    indexed: bool = False
    dtype: ClassVar[str] = "int64"

    def __call__(self, value: Any) -> int:
        text = "" if value is None else str(value)
        if text in self.labels:
            return self.labels.index(text)
        if self.indexed and text.isdecimal() and int(text) < len(self.labels):
            return int(text)
        raise unknown("label", value, self.labels) if text else ValueError("the label is missing")


def label_names(table: Table, column: str) -> list[str]:
    """The different labels of a column, sorted: as numbers if they all are whole ones.

    A class column of the hub has its names, in their order, already.
    """
    check_column(table, column)
    feature = table.rows.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    values = {str(value) for value in table.rows.unique(column) if value not in (None, "")}
    return sorted(values, key=int if all(map(_whole, values)) else None)


def _whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
