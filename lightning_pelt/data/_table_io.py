"""Read and convert rows of files and of hub data sets; errors name file, row and column."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import datasets
import pyarrow as pa
from datasets import Audio, ClassLabel, Dataset, Features, Image, load_dataset
from datasets.fingerprint import Hasher

from lightning_pelt.data._columns import (
    Column,
    Text,
    check_distinct,
    collected_label,
    is_printed,
    refuse_printed,
)
from lightning_pelt.data._file_rows import READERS
from lightning_pelt.utils.errors import unknown
from lightning_pelt.utils.files import write_aside

T = TypeVar("T")

FORMAT = 2  # part of every cache key: raise it when the same file gives other tokens
SAMPLE = 5  # rows that are looked at to find texts that are printed lists


class Table(NamedTuple):
    """Rows, and the name of their source for errors.

    Attributes:
        rows: as they were read.
        source: the file, the pattern of files, or the data set and its split.
        encoded: whether the cells are JSON texts.
        parts: the files of a pattern, and their numbers of rows.
    """

    rows: Dataset
    source: str
    encoded: bool = False
    parts: tuple[tuple[str, int], ...] = ()

    def values(self, column: str, *, distinct: bool = False) -> list[Any]:
        """The values of a column; without repetitions if ``distinct``."""
        cells = self.rows.unique(column) if distinct else self.rows[column][:]
        return [self._decoded(cell) for cell in cells]

    def converted(self, index: int, cell: Any, column: str, kind: Callable[[Any], T]) -> T:
        """The value of a cell after conversion with ``kind``.

        Raises:
            ValueError: it cannot be converted; the message names file, row (from 1) and column.
        """
        try:
            return kind(self._decoded(cell))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{self.place(index)}, column {column!r}: {error}") from None

    def place(self, index: int) -> str:
        """The file and the row, from 1, of a row of the table."""
        source = self.source
        for name, length in self.parts:
            if index < length:
                source = name
                break
            index -= length
        return f"{source}, row {index + 1}"

    def _decoded(self, cell: Any) -> Any:
        if isinstance(cell, tuple):  # of several columns
            return tuple(map(self._decoded, cell))
        return json.loads(cell) if self.encoded and cell is not None else cell


def read_file(path: str | Path, *, header: Sequence[str] = ()) -> Table:
    """The rows of a CSV, TSV, JSONL, JSON or Parquet file, cached by the content of the file.

    Args:
        path: the file; its suffix is its format.
        header: the names of the columns, if a CSV or TSV file may lack a header.

    Raises:
        FileNotFoundError: the message names the most similar file in the folder.
        ValueError: an unknown suffix, or a file that is damaged or has no rows; the message names
            file, row and cause.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder, expected a file{_files_in(path)}")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise ValueError(f"{path}: {unknown('kind of file', path.suffix, READERS)}")
    if not path.is_file():
        files = [file.name for file in path.parent.glob("*")] if path.parent.is_dir() else []
        near = get_close_matches(path.name, files, n=1)
        raise FileNotFoundError(f"no file {path}" + (f": did you mean {near[0]}?" if near else ""))
    key = _digest(path, (FORMAT, suffix, tuple(header)))
    cached = Path(datasets.config.HF_DATASETS_CACHE) / "lightning_pelt" / key / "rows.arrow"
    if not cached.is_file():
        _write(READERS[suffix](path, header), path, cached)
    try:
        rows = Dataset.from_file(str(cached))
    except (ValueError, NotImplementedError) as error:  # a type that `datasets` does not have
        raise ValueError(f"{path}: {error}") from error
    except (TypeError, AttributeError, LookupError) as error:  # the types that a file states
        raise ValueError(f"{path}: the types of its columns are damaged ({error})") from error
    return Table(rows, str(path), encoded=suffix in (".json", ".jsonl"))


def _files_in(folder: Path) -> str:
    files = sorted(file.name for file in folder.glob("*") if file.suffix.lower() in READERS)
    return f": name one of its files, such as {files[0]}" if files else ""


def _digest(path: Path, options: tuple[object, ...]) -> str:
    """A key of the content: another file of the same size and date has another key."""
    digest = sha256(repr(options).encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write(table: pa.Table, path: Path, cached: Path) -> None:
    """Write the rows where ``datasets`` can map them into memory.

    Raises:
        ValueError: there are none.
    """
    if not len(table):
        raise ValueError(f"{path} has no rows")
    cached.parent.mkdir(parents=True, exist_ok=True)

    def write(aside: Path) -> None:
        with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)

    write_aside(cached, write)


def read_hub(name: str, config: str | None, split: str, *, remedy: str) -> Table:
    """The rows of one split of a data set on the hub, or in a folder with files of data.

    Raises:
        OSError: the data set cannot be reached and is not cached; the message ends in ``remedy``.
    """
    try:
        rows = load_dataset(name, config, split=split)
    except OSError as error:
        raise OSError(f"the data set {name!r} cannot be reached ({error}). {remedy}") from error
    return Table(undecoded(rows), f"{name} ({split})")


def undecoded(rows: Dataset) -> Dataset:
    """The rows with images and sounds as they are stored; batches decode them."""
    for name, feature in rows.features.items():
        if isinstance(feature, Image | Audio):
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


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
        for name in column.names:
            check_column(table, name)
        if isinstance(column.kind, Text):
            _check_texts(table, column)
    raw = table.rows

    def convert(rows: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        return {
            name: [
                table.converted(index, cell, ", ".join(column.names), column.kind)
                for index, cell in zip(indices, column.cells(rows), strict=True)
            ]
            for name, column in columns.items()
        }

    return raw.map(
        convert,
        batched=True,
        with_indices=True,
        remove_columns=raw.column_names,
        features=Features({name: column.kind.feature for name, column in columns.items()}),
        new_fingerprint=Hasher.hash((raw._fingerprint, FORMAT, dict(columns))),
        desc=desc,
    )


def _check_texts(table: Table, column: Column) -> None:
    """Check that the first texts of a column are not printed lists."""
    cells = table.rows[:SAMPLE][column.name]
    texts = [table.converted(i, c, column.name, column.kind) for i, c in enumerate(cells)]
    if texts and all(is_printed(str(text)) for text in texts):
        table.converted(0, cells[0], column.name, refuse_printed)


def label_names(table: Table, column: str) -> list[str]:
    """The distinct labels of a column, sorted, as numbers if all of them are integers.

    A ``ClassLabel`` column of the hub keeps its own order.

    Raises:
        ValueError: a row has no label, or two labels look like one. The message names the file, the
            row (from 1) and the column.
    """
    check_column(table, column)
    feature = table.rows.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    cells = enumerate(table.rows[column][:])
    names = {table.converted(index, cell, column, collected_label) for index, cell in cells}
    ordered = sorted(names, key=int if all(map(_is_integer, names)) else None)
    try:
        check_distinct(ordered)
    except ValueError as error:
        raise ValueError(f"{table.source}, column {column!r}: {error}") from None
    return ordered


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
