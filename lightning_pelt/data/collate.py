"""From tokenised rows to one padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the target that torch's cross entropy leaves out


class Collate:
    """Pads the columns of a batch on the tokenizer's side and makes them tensors.

    Token columns become ``(batch, tokens)`` integers: as wide as the longest row, or as ``widths``
    says. A label per row becomes ``(batch,)``: int64 for classes, float32 for numbers; a label
    sequence is padded with -100.

    Args:
        tokenizer: says what to pad with, and on which side.
        widths: a fixed number of tokens for these columns, instead of the longest row's.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, widths: Mapping[str, int] | None = None
    ) -> None:
        self.left = tokenizer.padding_side == "left"
        self.widths = dict(widths or {})
        self.fill = {
            "input_ids": tokenizer.pad_token_id,
            "token_type_ids": tokenizer.pad_token_type_id,
            "labels": IGNORED,
        }

    def __call__(
        self, rows: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor]:
        """A batch from columns (a slice of a data set) or from a list of rows."""
        if not isinstance(rows, Mapping):
            rows = {name: [row[name] for row in rows] for name in rows[0]}
        return {name: self._tensor(name, values) for name, values in rows.items()}

    def _tensor(self, name: str, values: Sequence[Any]) -> Tensor:
        if not isinstance(values[0], list):
            return torch.tensor(values)
        width = self.widths.get(name) or max(map(len, values))
        batch = torch.full((len(values), width), self.fill.get(name, 0))
        for row, value in zip(batch, values, strict=True):
            span = slice(width - len(value), width) if self.left else slice(0, len(value))
            row[span] = torch.tensor(value, dtype=row.dtype)
        return batch
