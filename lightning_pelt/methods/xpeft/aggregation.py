"""Aggregation of the bank in parameter space: one adapter per profile, applied to its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.methods._bottleneck import extend
from lightning_pelt.methods.gate import GateView
from lightning_pelt.methods.submodule import keeping_values, refer
from lightning_pelt.methods.xpeft.masks import Masks, SelectedMasks


class Adapters(NamedTuple):
    """Adapters of U profiles, and the profile of each row.

    Attributes:
        A: down-projections (U, d, b).
        c: their biases (U, b).
        B: up-projections (U, b + 1, d) with the bias as the last row.
        norms: weight and bias of the norm in the bottleneck (U or 1, 2, b); None without a norm.
        inverse: (B,), the index of each row's profile among the U.
    """

    A: Tensor
    c: Tensor
    B: Tensor
    norms: Tensor | None
    inverse: Tensor

    def down(self, h: Tensor) -> Tensor:
        """h (B, T, d) or (B T, d) -> (B, T, b) or (B T, b), normalized."""
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
        """``added + x W`` with the W of each row's profile; ``added`` is per row, or (U, 1, n)."""
        width = weights.shape[-1]
        shape = (*x.shape[:-1], width)
        per_row = added.numel() != x.numel() // x.shape[-1] * width
        if len(weights) == 1:
            flat = added[0] if per_row else added.reshape(-1, width)
            weight = weights[0].to(x.dtype)
            return torch.addmm(flat.to(x.dtype), x.reshape(-1, x.shape[-1]), weight).view(shape)
        index = self._index(x)
        rows = x.reshape(len(index), -1, x.shape[-1])
        whole = added[index] if per_row else added.reshape(len(index), -1, width)
        if len(weights) > len(index):  # the slots of a server: cast only those of the rows
            weights = weights[index].to(x.dtype)
        else:
            weights = weights.to(x.dtype)[index]
        return torch.baddbmm(whole.to(x.dtype), rows, weights).view(shape)

    def _index(self, x: Tensor) -> Tensor:
        """The index of the profile of each row of ``x``; beams of one row share its profile."""
        if x.dim() > 2 and len(x) % len(self.inverse) == 0:
            return self.inverse.repeat_interleave(len(x) // len(self.inverse))
        return self.inverse


class AggregatedAdapter(nn.Module):
    """One site's slice of the bank, which masks combine into one adapter per profile.

    The slice is not a buffer, so that checkpoints do not contain it and DDP does not broadcast it.
    It moves with the module.

    Args:
        masks: the masks of all sites.
        index: of the site among those with masks.
        A: down-projections (N, d b).
        B: up-projections (N, (b + 1) d) with the biases as the last rows.
        c: biases of the down-projections (N, b); None if all are zero.
        bottleneck: b.
        activation: of the adapter.
        gate: None if it is not gated.
    """

    masks: Masks

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
        refer(self, masks=masks)  # the root owns them
        self.index, self.bottleneck = index, bottleneck
        self.activation, self.gate = activation, gate
        self.A, self.B, self.c = A, B, c

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        fn = keeping_values(fn)
        moved = super()._apply(fn, recurse)
        dtype = self.A.dtype
        self.A, self.B = (fn(tensor).to(dtype) for tensor in (self.A, self.B))
        self.c = None if self.c is None else fn(self.c).to(dtype)
        return moved

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (B, T, d), h (B, T, d) -> (B, T, d)."""
        selected = self.masks.of_forward()
        adapters = self.aggregate(selected)
        return extend(output, h, adapters, activation=self.activation, gate=self.gate)

    def aggregate(self, selected: SelectedMasks) -> Adapters:
        """The adapters of all selected profiles, from one matrix product per side.

        The arithmetic intensity of the product grows with the number of profiles.
        """
        if selected.adapters is not None:
            return selected.adapters[self.index]._replace(inverse=selected.inverse)
        a, b = selected.masks[:, self.index].to(self.A.dtype).unbind(1)  # (U, N) each
        A = (a @ self.A).float().unflatten(-1, (-1, self.bottleneck))
        c = A.new_zeros(len(A), self.bottleneck) if self.c is None else (a @ self.c).float()
        B = (b @ self.B).float().unflatten(-1, (self.bottleneck + 1, -1))
        norms = None if selected.norms is None else selected.norms[:, self.index]
        return Adapters(A, c, B, norms, selected.inverse)
