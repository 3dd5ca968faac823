"""Read and convert rows of files and of hub data sets; errors name file, row and column."""

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

from lightning_pelt.utils.errors import unknown

FORMAT = 1  # part of every cache key: raise it when the same file gives other tokens

# Suffix -> builder of `datasets`, and its options. Tab-separated files have no quoting: every line
# is a row, also with an unbalanced quotation mark.
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"delimiter": "\t", "quoting": csv.QUOTE_NONE}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}


class Table(NamedTuple):
    """Rows, and the name of their source for errors."""

    rows: Dataset
    source: str


def read_file(path: str | Path, *, strings: Sequence[str] = (), **options: Any) -> Table:
    """The rows of a CSV, TSV, JSONL or Parquet file.

    Args:
        path: the file; its suffix is its format.
        strings: columns that are read as strings if the file has no types.
        options: further options of the builder.

    Raises:
        FileNotFoundError: the message names the most similar file in the folder.
        ValueError: an unknown suffix, or a damaged file; the message names file, row and cause.
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
    with _errors_named(path):
        rows = load_dataset(kind, data_files=str(path), split="train", **defaults, **options)
    return Table(rows, str(path))


def read_hub(name: str, config: str | None, split: str, *, remedy: str) -> Table:
    """The rows of one split of a data set on the hub.

    Raises:
        OSError: the data set cannot be reached and is not cached; the message ends in ``remedy``.
    """
    try:
        rows = load_dataset(name, config, split=split)
    except OSError as error:
        raise OSError(f"the data set {name!r} cannot be reached ({error}). {remedy}") from error
    return Table(rows, f"{name} ({split})")


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Re-raise errors of ``datasets`` with the file, the row and the cause."""
    try:
        yield
    except StopIteration:
        raise ValueError(f"{path} has no rows") from None
    except Exception as error:
        cause = str(error.__cause__ or error).strip()
        row = _bad_line(path) if path.suffix == ".jsonl" else None
        where = f"{path}, row {row}" if row else f"{path}"
        raise ValueError(f"{where}: truncated or not a {path.suffix[1:]} file ({cause})") from error


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
    """Check that a column exists.

    Raises:
        ValueError: it does not; the message names the source and the nearest column.
    """
    if column not in table.rows.column_names:
        raise ValueError(f"{table.source}: {unknown('column', column, table.rows.column_names)}")


def convert_columns(table: Table, columns: Mapping[str, Column], *, desc: str) -> Dataset:
    """The rows with the given columns only, converted. The result is cached beside ``table``.

    Args:
        table: the rows as they were read.
        columns: by new name, the column to read and how to convert its values.
        desc: text of the progress bar.

    Raises:
        ValueError: a column does not exist, or a value cannot be converted. The message names the
            file, the row (from 1) and the column.
    """
    for column in columns.values():
        check_column(table, column.name)
    raw, source = table

    def convert(rows: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        converted: dict[str, list[Any]] = {name: [] for name in columns}
        for name, column in columns.items():
            for index, value in zip(indices, rows[column.name], strict=True):
                try:
                    converted[name].append(column.kind(value))
                except (TypeError, ValueError) as error:
                    where = f"{source}, row {index + 1}, column {column.name!r}"
                    raise ValueError(f"{where}: {error}") from None
        return converted

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
    """A column of a file, and how to convert its values."""

    name: str
    kind: Text | Number | Label


@dataclass(frozen=True)
class Text:
    """A text. It must not be blank, unless it ``may_be_empty``."""

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
class Label:
    """The index of a label, from its name or, if ``indexed``, also from the index itself."""

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
    """The distinct labels of a column, sorted, as numbers if all of them are integers.

    A ``ClassLabel`` column of the hub keeps its own order.
    """
    check_column(table, column)
    feature = table.rows.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    values = {str(value) for value in table.rows.unique(column) if value not in (None, "")}
    return sorted(values, key=int if all(map(_is_integer, values)) else None)


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
