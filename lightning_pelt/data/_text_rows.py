"""What the readers of CSV, TSV and JSON files share: lines, row numbers in errors, tables."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

T = TypeVar("T")
Row = Mapping[str, str | None]

CHUNK = 1000  # rows that are converted together
BLANK = (
    "it is blank, and programs number the rows after it differently: delete the line, or fill it"
)


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a file with their ends.

    Raises:
        ValueError: a line is not UTF-8, or contains a NUL byte.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=_line_end(path)) as file:
        for line in file:
            if not line.isascii():
                _check_utf8(line)
            if "\0" in line:
                raise ValueError("it contains a NUL byte: the file is damaged, or not a text file")
            yield line


def _check_utf8(line: str) -> None:
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) - 0xDC00
        raise ValueError(f"the byte 0x{byte:02x} is not UTF-8: save the file as UTF-8") from None


def _line_end(path: Path) -> str:
    """What ends a line: LF, also after CR, or CR alone."""
    with path.open("rb") as file:
        while block := file.read(1 << 16):
            if ends := re.search(rb"\r*\n|\r+", block):
                alone = not ends[0].endswith(b"\n") and ends.end() < len(block)
                return "\r" if alone else "\n"
    return "\n"


def located(path: Path, rows: Iterator[T], *, first: int = 1, damage: str = "") -> Iterator[T]:
    """Add the file and the row to errors. Row 0 is the header.

    Args:
        path: the file.
        rows: its rows.
        first: the number of the first row.
        damage: what errors of the parser mean.
    """
    number = first
    try:
        for row in rows:
            yield row
            number += 1
    except (csv.Error, ValueError, RecursionError) as error:
        where = f"row {number}" if number else "header"
        cause = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        if damage and isinstance(error, (json.JSONDecodeError, RecursionError)):
            cause = f"{damage} ({cause})"
        raise ValueError(f"{path}, {where}: {cause}") from error


def check_name(name: str) -> None:
    """Check the name of a column.

    Raises:
        ValueError: it contains a NUL character, at which other programs end it.
    """
    if "\0" in name:
        raise ValueError(f"the name of the column {name!r} contains a NUL character: rename it")


def check_names(names: Sequence[str]) -> None:
    """Check that the names of columns differ; a column may lack a name.

    Raises:
        ValueError: two columns have one name, a name contains a NUL character, or no column has a
            name.
    """
    named = [name for name in names if name]
    if not named:
        raise ValueError("it is blank: expected the names of the columns")
    for name in named:
        check_name(name)
        if named.count(name) > 1:
            raise ValueError(
                f"there are {named.count(name)} columns {name!r}: rename or remove one"
            )


def string_table(rows: Iterator[Row]) -> pa.Table:
    """A table of strings; cells that a row does not have are null."""
    parts = []
    while chunk := list(islice(rows, CHUNK)):
        names = dict.fromkeys(name for row in chunk for name in row)
        columns = [pa.array([row.get(name) for row in chunk], pa.string()) for name in names]
        parts.append(pa.table(columns, names=list(names)))
    return pa.concat_tables(parts, promote_options="default") if parts else pa.table({})
