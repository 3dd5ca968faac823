"""Batches of rows with several texts each: choices, or sentences to compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_pelt.data.collator import Collate

T = TypeVar("T")

HASHES = "text_hashes"  # equal for equal texts, (B, n)
PRESENT = "present"  # which texts of a batch a row has, (B, n) booleans
TOKENS = ("input_ids", "attention_mask", "token_type_ids")


def grouped(values: Sequence[T], counts: Sequence[int]) -> list[list[T]]:
    """Values in consecutive lists of the given lengths.

    Example:
        >>> grouped("abc", [2, 1])
        [['a', 'b'], ['c']]
    """
    rest: Iterator[T] = iter(values)
    return [list(islice(rest, count)) for count in counts]


class CollateSeveral(Collate):
    """Pads rows of several texts.

    Token columns become (B, n, T) int64, where n is the largest number of texts of a row.
    ``present`` (B, n) is true for the texts that a row has. In the place of others is the first
    text of the row, so that no text is empty. Lists of strings stay lists.

    Args:
        tokenizer: see :class:`Collate`.
        lengths: likewise.
    """

    def __call__(
        self, rows: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Make a batch from columns (a slice of a data set) or from a list of rows."""
        if not isinstance(rows, Mapping):
            rows = {name: [row[name] for row in rows] for name in rows[0]}
        counts = [len(texts) for texts in rows["input_ids"]]
        most = max(counts)
        batch: dict[str, Any] = {
            name: self._texts(name, values, most) if name in TOKENS else self._other(values, most)
            for name, values in rows.items()
        }
        return {**batch, PRESENT: torch.arange(most) < torch.tensor(counts)[:, None]}

    def _texts(self, name: str, values: Sequence[Sequence[list[int]]], most: int) -> Tensor:
        flat = [text for row in values for text in _filled(row, most)]
        return self._tensor(name, flat).unflatten(0, (len(values), most))

    def _other(self, values: Sequence[Any], most: int) -> Any:
        if not isinstance(values[0], list):
            return torch.tensor(values)
        if isinstance(values[0][0], str):
            return [list(row) for row in values]
        return torch.tensor([_filled(row, most) for row in values])


def _filled(row: Sequence[T], most: int) -> list[T]:
    return [*row, *[row[0]] * (most - len(row))]
