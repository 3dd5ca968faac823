"""What all bottlenecks compute, whatever their two projections are made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pelt.errors import unknown
from lightning_pelt.gate import GateView
from lightning_pelt.submodule import add_product

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


def check(owner: object, *, activation: str, bottleneck: int | None, reduction_factor: int) -> None:
    """Raise a ``ValueError`` for an unknown activation or a width below 1."""
    if activation not in ACTIVATIONS:
        raise unknown("activation of an adapter", activation, ACTIVATIONS)
    if (bottleneck is not None and bottleneck < 1) or reduction_factor < 1:
        raise ValueError(
            f"{type(owner).__name__} has bottleneck={bottleneck}, "
            f"reduction_factor={reduction_factor}: both must be at least 1"
        )


def extend(
    output: Tensor,
    h: Tensor,
    *,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    activation: str,
    gate: GateView | None,
) -> Tensor:
    r""":math:`f + g \, [\phi(W_{down} h + b_{down}), 1] \, W_{up}`.

    Shapes: output f (B, T, d), h (B, T, k), down (m, k), down_bias (m,), up (m + 1, d) with the
    bias as its last row, so that the gate scales it and nothing is added to (B, T, d) but one
    product; -> (B, T, d).
    """
    inner = ACTIVATIONS[activation](F.linear(h.to(down.dtype), down, down_bias))
    inner = torch.cat([inner, inner.new_ones(1).expand(*inner.shape[:-1], 1)], -1)
    if gate is not None:
        gate.layer(h)
        inner = inner * gate.read().to(inner.dtype)
    return add_product(output, inner, up)
