"""The examples of a packed batch, for means of gates in which each example counts once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class PackedExamples(NamedTuple):
    """Which example each token of packed rows (B, T) belongs to.

    Attributes:
        numbers: of each token's example, (B, T), below B T.
        sizes: number of tokens of each example, (B T,); 0 for numbers that no example has.
        weights: 1 for each example, (B T,), and 0 for padding, which is examples of one token.

    Example:
        >>> batch = {"position_ids": torch.tensor([[0, 1, 0, 1, 2, 0, 0]])}
        >>> found = examples_in(batch)
        >>> means = found.means(torch.tensor([[1.0, 3.0, 6.0, 6.0, 9.0, 8.0, 8.0]]))
        >>> means[found.weights > 0]
        tensor([2., 7.])
    """

    numbers: Tensor
    sizes: Tensor
    weights: Tensor

    def means(self, values: Tensor) -> Tensor:
        """values (B, T) -> the mean of each example, (B T,)."""
        sums = torch.zeros_like(self.sizes).index_add(0, self.numbers.flatten(), values.flatten())
        return sums / self.sizes.clamp(min=1)


def examples_in(batch: Any) -> PackedExamples | None:
    """The examples of a batch with ``position_ids`` and no ``attention_mask``; None for others."""
    if not isinstance(batch, Mapping) or batch.get("attention_mask") is not None:
        return None
    positions = batch.get("position_ids")
    if not isinstance(positions, Tensor) or positions.dim() != 2:
        return None
    rows, tokens = positions.shape
    starts = torch.ones_like(positions)
    starts[:, 1:] = positions.diff(dim=1) != 1
    numbers = starts.cumsum(1) - 1 + torch.arange(rows, device=positions.device)[:, None] * tokens
    ones = torch.ones(rows * tokens, device=positions.device)
    sizes = torch.zeros_like(ones).index_add(0, numbers.flatten(), ones)
    return PackedExamples(numbers, sizes, (sizes > 1).float())
