"""Weights per row: each row of a batch is computed with one of several sets of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_pelt.methods._ops import cast, match_dtype


class Rows:
    """Which of several adapters each row of a batch uses.

    The last number is that of no adapter, whose weights are all zero.

    Attributes:
        index: (B,), the number of each row's adapter.

    Example:
        >>> rows = Rows(torch.tensor([1, 0, 2]))
        >>> weights = rows.stack([torch.full((1, 1), 2.0), torch.full((1, 1), 3.0)])
        >>> rows.product(torch.ones(3, 1, 1), weights).flatten()
        tensor([3., 2., 0.])
    """

    def __init__(self, index: Tensor) -> None:
        self.index = index

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of U adapters, each (...), and zeros for none: (U + 1, ...), contiguous."""
        with torch.no_grad():
            return torch.stack([*tensors, torch.zeros_like(tensors[0])]).detach()

    def numbers(self, x: Tensor) -> Tensor:
        """The number of the adapter of each row of ``x`` (R, ...); beams of a row share its own.

        Raises:
            RuntimeError: ``x`` is not computed row by row.
        """
        rows = len(self.index)
        if x.dim() < 2 or len(x) == 0 or len(x) % rows:
            raise RuntimeError(
                f"an adapter reads a tensor of shape {tuple(x.shape)} in a batch of {rows} rows: "
                "it does not belong to the rows, so that they cannot have different adapters. Give "
                f"rows() one name for each of the rows of the batch; if {rows} is their number, "
                "run the adapters one after another, with adapters.using(name)"
            )
        times = len(x) // rows
        return self.index if times == 1 or x.dim() == 2 else self.index.repeat_interleave(times)

    def of(self, values: Tensor, x: Tensor) -> Tensor:
        """values (U + 1, n) -> those of the rows of ``x`` (R, ..., k), as (R, 1, ..., n)."""
        chosen = values[self.numbers(x)]
        if x.dim() == 2:  # (B T, k), where a feed-forward flattens its input
            return chosen.repeat_interleave(len(x) // len(chosen), 0)
        return chosen.view(len(x), *[1] * (x.dim() - 2), -1)

    def product(
        self, x: Tensor, weights: Tensor, *, bias: Tensor | None = None, onto: Tensor | None = None
    ) -> Tensor:
        """``x W + b`` with the weights of each row.

        Shapes: x (R, ..., k) or (B T, k), weights (U + 1, k, n), bias (U + 1, n) -> (R, ..., n).

        Args:
            onto: what the product is added to, (R, ..., n), in its dtype; in the place of a bias.
        """
        numbers = self.numbers(x)
        if onto is not None:
            x, weights = cast(x, onto.dtype), cast(weights, onto.dtype)
        else:
            x = match_dtype(x, weights)
        chosen, flat = weights[numbers], x.reshape(len(numbers), -1, x.shape[-1])
        shape = (*x.shape[:-1], weights.shape[-1])
        if onto is not None:
            total = torch.baddbmm(onto.reshape(*flat.shape[:2], -1), flat, chosen)
            return cast(total, onto.dtype).view(shape)
        if bias is None:
            return torch.bmm(flat, chosen).view(shape)
        return torch.baddbmm(bias[numbers][:, None], flat, chosen).view(shape)


class DenseByRow(NamedTuple):
    """Bottlenecks of U adapters: W (U + 1, k, m), their biases (U + 1, m), V (U + 1, m + 1, d)."""

    rows: Rows
    W: Tensor
    bias: Tensor
    V: Tensor

    def down(self, h: Tensor) -> Tensor:
        return self.rows.product(h, self.W, bias=self.bias)

    def add_up(self, output: Tensor, inner: Tensor) -> Tensor:
        return self.rows.product(inner, self.V, onto=output)
