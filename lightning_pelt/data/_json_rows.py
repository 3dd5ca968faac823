"""Parse files of JSON objects: one per line, or a list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import pyarrow as pa

from lightning_pelt.data._columns import check_unicode
from lightning_pelt.data._text_rows import (
    BLANK,
    Row,
    check_name,
    check_names,
    located,
    string_table,
    text_lines,
)

SPACE = re.compile(r"[ \t\r\n]*")


def json_rows(path: Path, header: Sequence[str]) -> pa.Table:
    """The objects of a file, one per line or as a list. Each value is kept as its JSON text.

    Values of one column may thus have different types, and unused columns may hold anything.

    Raises:
        ValueError: the file is damaged, or a row is not an object.
    """
    values = _items(path) if _is_list(path) else _values(path)
    kind = path.suffix.lower().removeprefix(".")
    return string_table(located(path, _encoded(values), damage=f"truncated or not a {kind} file"))


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1 << 12).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _values(path: Path) -> Iterator[Any]:
    """The value of each line; blank lines as in :func:`_cells`."""
    blank = False
    for line in text_lines(path):
        if not line.strip():
            blank = True
        elif blank:
            raise ValueError(BLANK)
        else:
            yield json.loads(line, object_pairs_hook=_object)


def _items(path: Path) -> Iterator[Any]:
    """The items of a list, one by one, so that an error has the number of its row."""
    text = "".join(text_lines(path))
    decode = json.JSONDecoder(object_pairs_hook=_object).raw_decode
    at = _after_space(text, text.index("[") + 1)
    while not text.startswith("]", at):
        value, at = decode(text, at)
        yield value
        at = _after_space(text, at)
        if text.startswith(",", at):
            at = _after_space(text, at + 1)
        elif not text.startswith("]", at):
            raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
    if text[at + 1 :].strip():
        raise json.JSONDecodeError("Extra data", text, at + 1)


def _after_space(text: str, at: int) -> int:
    space = SPACE.match(text, at)
    return space.end() if space else at


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        check_names([name for name, _ in pairs])
    return values


def _encoded(values: Iterator[Any]) -> Iterator[Row]:
    """The JSON text of each value of each row."""
    for row in values:
        if not isinstance(row, dict) or not row:
            raise ValueError(
                f'{shortened(row)} is not a row: expected an object such as {{"text": "a b"}}'
            )
        for name in row:
            check_unicode(name)
            check_name(name)
        yield {k: None if v is None else json.dumps(v) for k, v in row.items()}
