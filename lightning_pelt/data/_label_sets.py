"""Sets of labels of a row: convert the values of their columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from reprlib import repr as shortened
from typing import Any, ClassVar

import numpy as np
from datasets import List, Value

from lightning_pelt.data._columns import (
    Label,
    check_distinct,
    collected_label,
    is_printed,
    refuse_printed,
)
from lightning_pelt.data._table_io import Table, check_column
from lightning_pelt.data._token_labels import class_label_names

NO_LABEL = "an empty list, or an empty cell with separator=, is a row without labels"


@dataclass(frozen=True)
class LabelNames:
    """The names of the labels of a row, which may have none.

    Args:
        separator: between the names in a text; None expects a list.
    """

    separator: str | None = None

    def __call__(self, value: Any) -> list[str]:
        return [collected_label(item) for item in self.items(value)]

    def items(self, value: Any) -> list[Any]:
        """The labels as they are written.

        Raises:
            ValueError: the value is neither a list nor a text with a separator.
        """
        if self.separator is not None and (value is None or isinstance(value, str)):
            parts = [part.strip() for part in (value or "").split(self.separator)]
            return [part for part in parts if part]
        if isinstance(value, str) and value.startswith("["):
            if is_printed(value):
                refuse_printed(value)
            with suppress(ValueError):
                value = json.loads(value)
        if isinstance(value, list | tuple | np.ndarray):
            return list(value)
        if value is None:
            raise ValueError(f"the labels are missing; {NO_LABEL}")
        raise ValueError(
            f"{shortened(value)} is a {type(value).__name__}, expected a list of labels: if labels "
            'are separated in a text, name what separates them, such as separator=";"'
        )


@dataclass(frozen=True)
class LabelSet:
    """0 or 1 for each label, from the names of the labels of a row.

    Args:
        labels: names by index.
        separator: see :class:`LabelNames`.
        indexed: whether an integer may be an index.
    """

    labels: tuple[str, ...]
    separator: str | None = None
    indexed: bool = False
    feature: ClassVar[Any] = List(Value("int64"))

    @cached_property
    def _label(self) -> Label:
        return Label(self.labels, self.indexed)

    def __call__(self, value: Any) -> list[int]:
        found = {self._label(item) for item in LabelNames(self.separator).items(value)}
        return [int(index in found) for index in range(len(self.labels))]


@dataclass(frozen=True)
class Flag:
    """0 or 1: whether a row has the label of a column."""

    feature: ClassVar[Any] = Value("int64")

    def __call__(self, value: Any) -> int:
        if isinstance(value, str):
            value = {"true": 1, "false": 0}.get(value.strip().lower(), value)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = np.nan
        if number not in (0.0, 1.0):
            raise ValueError(f"{shortened(value)} is neither 0 nor 1")
        return int(number)


def set_names(table: Table, column: str, separator: str | None) -> list[str]:
    """The distinct labels of a column of sets, sorted, as numbers if all of them are integers.

    A column of ``ClassLabel`` lists keeps its own order.

    Raises:
        ValueError: no row has a label, a value is no set of labels, or two labels look like one.
    """
    check_column(table, column)
    if names := class_label_names(table, column):
        return names
    kind, found = LabelNames(separator), set[str]()
    for index, cell in enumerate(table.rows[column][:]):
        found.update(table.converted(index, cell, column, kind))
    whole = all(name.removeprefix("-").isdecimal() for name in found)
    ordered = sorted(found, key=int if whole else None)
    place = f"{table.source}, column {column!r}"
    if not ordered:
        raise ValueError(f"{place}: no row has a label")
    try:
        check_distinct(ordered)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return ordered


def set_kind(labels: Sequence[str], table: Table, column: str, separator: str | None) -> LabelSet:
    """Converts names; of a column of ``ClassLabel`` lists, indices too."""
    indexed = bool(class_label_names(table, column))
    return LabelSet(tuple(labels), separator, indexed)
