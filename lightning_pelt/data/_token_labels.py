"""Words and their tags: convert the values of their columns, and find the tokens of words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from reprlib import repr as shortened
from typing import Any, ClassVar

import numpy as np
from datasets import ClassLabel, List, Value

from lightning_pelt.data._columns import (
    Label,
    Text,
    check_distinct,
    collected_label,
    is_printed,
    refuse_printed,
)
from lightning_pelt.data._table_io import Table, check_column
from lightning_pelt.utils.errors import unknown

OUTSIDE = "O"
Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Words:
    """The words of a text: a list, a list as JSON, or a text with white space between words.

    A word may be empty.
    """

    feature: ClassVar[Any] = List(Value("string"))

    def __call__(self, value: Any) -> list[str]:
        word = Text(may_be_empty=True)
        return [_item(word, item, number, "word") for number, item in _items(value, "words")]


@dataclass(frozen=True)
class Tags:
    """The indices of the tags of a text, from a list of names or a text of names.

    Args:
        labels: names of the tags by index.
        indexed: whether an integer may be an index.
    """

    labels: tuple[str, ...]
    indexed: bool = False
    feature: ClassVar[Any] = List(Value("int64"))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.labels)}

    def __call__(self, value: Any) -> list[int]:
        label = Label(self.labels, self.indexed)
        known = self._index
        return [
            known[item]
            if isinstance(item, str) and item in known
            else _item(label, item, number, "tag")
            for number, item in _items(value, "tags")
        ]


@dataclass(frozen=True)
class _TagNames:
    """The names of the tags of a text, for :func:`tag_names`."""

    def __call__(self, value: Any) -> list[str]:
        items = _items(value, "tags")
        return [_item(collected_label, item, number, "tag") for number, item in items]


def _items(value: Any, what: str) -> list[tuple[int, Any]]:
    """The items of a list with their numbers from 1.

    Raises:
        ValueError: the value is no list.
    """
    if value is None:
        raise ValueError(f"the {what} are missing: write an empty list for a row without words")
    if isinstance(value, str):
        value = _listed(value)
    if not isinstance(value, list | tuple | np.ndarray):
        raise ValueError(
            f"{shortened(value)} is a {type(value).__name__}, expected a list of {what}"
        )
    return list(enumerate(value, start=1))


def _listed(text: str) -> list[Any]:
    """The items of a text: of a JSON list, or what white space separates."""
    if text.startswith("["):
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if isinstance(value, list):
            return value
        if is_printed(text):
            refuse_printed(text)
    return text.split()


def _item(kind: Callable[[Any], Any], item: Any, number: int, what: str) -> Any:
    try:
        return kind(item)
    except ValueError as error:
        raise ValueError(f"{what} {number}: {error}") from None


def tag_names(table: Table, column: str) -> list[str]:
    """The distinct tags of a column of lists, sorted, with ``O`` first.

    A column of ``ClassLabel`` lists keeps its own order.

    Raises:
        ValueError: a row has no list of tags, or two tags look like one. The message names the
            file, the row (from 1) and the column.
    """
    check_column(table, column)
    if names := class_label_names(table, column):
        return names
    found: set[str] = set()
    for index, cell in enumerate(table.rows[column][:]):
        found.update(table.converted(index, cell, column, _TagNames()))
    whole = all(name.isdecimal() for name in found)
    ordered = sorted(found, key=int if whole else lambda name: (name != OUTSIDE, name))
    if not ordered:
        raise ValueError(f"{table.source}, column {column!r}: no row has a tag")
    try:
        check_distinct(ordered)
    except ValueError as error:
        raise ValueError(f"{table.source}, column {column!r}: {error}") from None
    return ordered


def class_label_names(table: Table, column: str) -> list[str]:
    """The names of a column of ``ClassLabel`` lists; none for another column."""
    inner = getattr(table.rows.features.get(column), "feature", None)
    return list(inner.names) if isinstance(inner, ClassLabel) else []


def tags_kind(labels: Sequence[str], table: Table, column: str) -> Tags:
    """Converts names; also indices, of a ``ClassLabel`` column or if no name is a number."""
    indexed = bool(class_label_names(table, column)) or not any(name.isdecimal() for name in labels)
    return Tags(tuple(labels), indexed=indexed)


def inside_tags(labels: Sequence[str]) -> list[int]:
    """Of each tag, the one of the same entity after its first token: I-X of B-X, otherwise itself.

    Example:
        >>> inside_tags(["O", "B-PER", "I-PER", "B-LOC"])
        [0, 2, 2, 3]
    """
    known = {name: index for index, name in enumerate(labels)}
    return [
        known.get(f"I{name[1:]}", index) if name[:2] in ("B-", "B") else index
        for index, name in enumerate(labels)
    ]


def words_of_tokens(words: Sequence[str], offsets: Offsets) -> np.ndarray:
    """The word that each token belongs to, -1 for none; (tokens,) int64.

    A token belongs to the word of its first character that is not a space between words.

    Args:
        words: of a text in which one space separates them.
        offsets: the first character and the end of each token.

    Example:
        >>> words_of_tokens(["a", "", "bc"], [(0, 1), (1, 4), (4, 5)]).tolist()
        [0, 2, 2]
    """
    sizes = np.array([len(word) for word in words], dtype=np.int64)
    firsts = np.cumsum(sizes + 1) - sizes - 1
    length = int((sizes + 1).sum())
    word = np.full(length + 1, -1)
    for index, (first, size) in enumerate(zip(firsts.tolist(), sizes.tolist(), strict=True)):
        word[first : first + size] = index
    places = np.where(word >= 0, np.arange(length + 1), length)
    following = np.minimum.accumulate(places[::-1])[::-1]  # the next character of a word
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    places = following[np.minimum(starts, length)]
    return np.where(places < ends, word[places], -1)


def carriers(word_of: np.ndarray, on: str) -> np.ndarray:
    """``word_of`` at the first or the last token of each word, -1 at the others."""
    known = np.flatnonzero(word_of >= 0)
    order = known if on != "last" else known[::-1]
    _, chosen = np.unique(word_of[order], return_index=True)
    carried = np.full_like(word_of, -1)
    carried[order[chosen]] = word_of[order[chosen]]
    return carried


def check_tokens(words: Sequence[str], carried: np.ndarray, labels: Sequence[str]) -> None:
    """Check that a tag ``O`` exists for words without tokens.

    Raises:
        ValueError: it does not, and a word has no token.
    """
    if OUTSIDE in labels:
        return
    missing = sorted(set(range(len(words))) - set(carried.tolist()))
    if missing:
        raise ValueError(
            f"{unknown('tag', OUTSIDE, labels)}. It is the tag of words without a token, and word "
            f"{missing[0] + 1} of the row {shortened(list(words))}, {words[missing[0]]!r}, has "
            "none: remove or replace the word"
        )
