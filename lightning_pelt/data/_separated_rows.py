"""Parse CSV and TSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lightning_pelt.data._text_rows import BLANK, check_names, located, string_table, text_lines

FIELD_LIMIT = 2**31 - 1  # characters of a cell; the csv module stops at 131,072 by default


def separated(path: Path, header: Sequence[str], **dialect: Any) -> pa.Table:
    """The rows of a file with a separator, as strings. Columns without a name are omitted.

    Args:
        path: the file.
        header: the names of the columns, if the file may lack a header. The first line is a header
            if one of these names is in it.
        dialect: options of :func:`csv.reader`.

    Raises:
        ValueError: the file is damaged, or a row has more or fewer cells than the header.
    """
    limit = csv.field_size_limit(FIELD_LIMIT)
    try:
        cells = located(path, _cells(text_lines(path), header, dialect), first=0)
        names = next(cells, [])
        return string_table(_named(names, row) for row in cells)
    finally:
        csv.field_size_limit(limit)


def _named(names: list[str], cells: list[str]) -> dict[str, str | None]:
    return {name: cell for name, cell in zip(names, cells, strict=True) if name}


def _cells(
    lines: Iterator[str], header: Sequence[str], dialect: Mapping[str, Any]
) -> Iterator[list[str]]:
    """The header, and the cells of each row.

    Blank lines at the end of the file are omitted. Between rows they are errors: some programs
    count them as rows, and others do not.
    """
    reader = csv.reader(lines, strict=True, **dialect)
    names: list[str] = []
    blank = False
    for cells in _explained(reader, dialect["delimiter"]):
        if not names:
            given = header and not set(header) & set(cells)
            names = list(header) if given else cells
            check_names(names)
            yield names
            if not given:
                continue
        if not cells:
            blank = True
        elif blank:
            raise ValueError(BLANK)
        elif len(cells) != len(names):
            raise ValueError(_wrong_count(len(cells), len(names), dialect["delimiter"]))
        else:
            yield cells


def _explained(reader: Iterator[list[str]], delimiter: str) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        cause = str(error).partition(" - ")[0]  # without the advice to programmers
        raise ValueError(
            f"it is not well-formed ({cause}). A cell with a separator ({delimiter!r}), a line end "
            'or a quotation mark at its beginning stands in quotation marks, as in "a, ""b"" c"'
        ) from None


def _wrong_count(cells: int, names: int, delimiter: str) -> str:
    if cells < names:
        remedy = "add the missing cells"
    elif delimiter == "\t":
        remedy = "remove tabs from the texts"
    else:
        remedy = f"put cells with a {delimiter!r} in quotation marks"
    return f"it has {cells} cell{'s' * (cells > 1)}, and the header has {names}: {remedy}"
