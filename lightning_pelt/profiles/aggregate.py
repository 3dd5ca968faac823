"""One adapter for each profile, aggregated from the bank in parameter space, for its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.bottleneck import extend
from lightning_pelt.gate import GateView
from lightning_pelt.profiles.masks import Choice, Masks


class Adapters(NamedTuple):
    """Adapters of U profiles and whose the rows are.

    Shapes: A (U, d, b), c (U, b), B (U, b + 1, d) with its bias as last row, norms (U or 1, 2, b)
    or None, inverse (B,).
    """

    A: Tensor
    c: Tensor
    B: Tensor
    norms: Tensor | None
    inverse: Tensor

    def down(self, h: Tensor) -> Tensor:
        """h (B, T, d) or (B T, d) -> (B, T, b) or (B T, b), normed."""
        inner = self._rows(h, self.A, self.c[:, None])
        if self.norms is None:
            return inner
        if len(self.norms) == 1:
            weight, bias = self.norms[0].to(inner.dtype).unbind()
            return F.layer_norm(inner, inner.shape[-1:], weight, bias)
        inner = F.layer_norm(inner, inner.shape[-1:])
        weight, bias = self.norms[self._index(inner)].to(inner.dtype).unbind(1)
        rows = inner.reshape(len(weight), -1, inner.shape[-1])
        return (rows * weight[:, None] + bias[:, None]).view(inner.shape)

    def add_up(self, output: Tensor, inner: Tensor) -> Tensor:
        return self._rows(inner, self.B, output).to(output.dtype)

    def _rows(self, x: Tensor, weights: Tensor, added: Tensor) -> Tensor:
        """``added + x W``, each row by its own W; ``added`` has a row each, or is (U, 1, n)."""
        weights = weights.to(x.dtype)
        width = weights.shape[-1]
        shape = (*x.shape[:-1], width)
        per_row = added.numel() != x.numel() // x.shape[-1] * width
        if len(weights) == 1:
            flat = added[0] if per_row else added.reshape(-1, width)
            return torch.addmm(flat.to(x.dtype), x.reshape(-1, x.shape[-1]), weights[0]).view(shape)
        index = self._index(x)
        rows = x.reshape(len(index), -1, x.shape[-1])
        whole = added[index] if per_row else added.reshape(len(index), -1, width)
        return torch.baddbmm(whole.to(x.dtype), rows, weights[index]).view(shape)

    def _index(self, x: Tensor) -> Tensor:
        """The place of each row of ``x`` among the profiles; beams of one row share it."""
        if x.dim() > 2 and len(x) % len(self.inverse) == 0:
            return self.inverse.repeat_interleave(len(x) // len(self.inverse))
        return self.inverse


class Aggregated(nn.Module):
    """A site's slice of the bank: masks in, one adapter for each profile out.

    The slice is no buffer: it belongs into no checkpoint, and DDP has nothing to broadcast. It
    moves with the module.

    Args:
        A, B: (N, d b) and (N, (b + 1) d), the latter with the biases as last rows.
        c: (N, b), or None where all are zero.
        index: of the site among those with masks.
    """

    def __init__(
        self,
        masks: Masks,
        index: int,
        *,
        A: Tensor,
        B: Tensor,
        c: Tensor | None,
        bottleneck: int,
        activation: str,
        gate: GateView | None,
    ) -> None:
        super().__init__()
        self.__dict__["masks"] = masks  # a reference, not a child: the root owns it
        self.masks: Masks
        self.slots: Adapters | None = None  # what a server has made before
        self.index, self.bottleneck, self.activation, self.gate = (
            index,
            bottleneck,
            activation,
            gate,
        )
        self.A, self.B, self.c = A, B, c

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        moved = super()._apply(fn, recurse)
        dtype = self.A.dtype
        self.A, self.B = (fn(tensor).to(dtype) for tensor in (self.A, self.B))
        self.c = None if self.c is None else fn(self.c).to(dtype)
        return moved

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (B, T, d), h (B, T, d) -> (B, T, d)."""
        choice = self.masks.choice
        assert choice is not None
        adapters = self.aggregate(choice)
        return extend(output, h, adapters, activation=self.activation, gate=self.gate)

    def aggregate(self, choice: Choice) -> Adapters:
        """One product per side for all profiles, whose intensity grows with their number."""
        if self.slots is not None:
            return self.slots._replace(inverse=choice.inverse)
        a, b = choice.masks[:, self.index].to(self.A.dtype).unbind(1)  # (U, N) each
        A = (a @ self.A).float().unflatten(-1, (-1, self.bottleneck))
        c = A.new_zeros(len(A), self.bottleneck) if self.c is None else (a @ self.c).float()
        B = (b @ self.B).float().unflatten(-1, (self.bottleneck + 1, -1))
        norms = None if choice.norms is None else choice.norms[:, self.index]
        return Adapters(A, c, B, norms, choice.inverse)
