"""Collate tokenized rows into a padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

IGNORED = -100  # target that torch's cross entropy ignores


class Collate:
    """Pads the columns of a batch on the tokenizer's padding side and converts them to tensors.

    Token columns become (B, T) int64, where T is the length of the longest row or a fixed length. A
    label per row becomes (B,): int64 for classes, float32 for numbers. Label sequences are padded
    with -100.

    Args:
        tokenizer: its padding tokens and padding side are used.
        lengths: fixed numbers of tokens by column.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, lengths: Mapping[str, int] | None = None
    ) -> None:
        self.left = tokenizer.padding_side == "left"
        self.lengths = dict(lengths or {})
        self.fill = {
            "input_ids": tokenizer.pad_token_id,
            "token_type_ids": tokenizer.pad_token_type_id,
            "labels": IGNORED,
        }

    def __call__(
        self, rows: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """Make a batch from columns (a slice of a data set) or from a list of rows."""
        if not isinstance(rows, Mapping):
            rows = {name: [row[name] for row in rows] for name in rows[0]}
        return {name: self._tensor(name, values) for name, values in rows.items()}

    def _tensor(self, name: str, values: Sequence[Any]) -> Tensor:
        if not isinstance(values[0], list):
            return torch.tensor(values)
        length = self.lengths.get(name) or max(map(len, values))
        batch = torch.full((len(values), length), self.fill.get(name, 0))
        for row, value in zip(batch, values, strict=True):
            span = slice(length - len(value), length) if self.left else slice(0, len(value))
            row[span] = torch.tensor(value, dtype=row.dtype)
        return batch
