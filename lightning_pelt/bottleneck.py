"""What all bottlenecks compute, whatever their two projections are made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pelt.errors import unknown
from lightning_pelt.gate import GateView
from lightning_pelt.submodule import add_product, meet

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Sized(Protocol):
    """What a method says of its bottlenecks."""

    @property
    def activation(self) -> str: ...
    @property
    def bottleneck(self) -> int | None: ...
    @property
    def reduction_factor(self) -> int: ...


def check(method: Sized) -> None:
    """Raise a ``ValueError`` for an unknown activation or a width below 1."""
    if method.activation not in ACTIVATIONS:
        raise unknown("activation of an adapter", method.activation, ACTIVATIONS)
    width = method.bottleneck
    if (width is not None and width < 1) or method.reduction_factor < 1:
        raise ValueError(
            f"{type(method).__name__} has bottleneck={width}, "
            f"reduction_factor={method.reduction_factor}: both must be at least 1"
        )


class Projections(Protocol):
    """Both projections of a bottleneck, in whichever form multiplies fastest."""

    def down(self, h: Tensor) -> Tensor:
        """h (B, T, k) -> (B, T, m), with the bias."""

    def add_up(self, output: Tensor, inner: Tensor) -> Tensor:
        """output (B, T, d), inner (B, T, m + 1) -> (B, T, d); inner ends with what scales the bias.

        So a gate scales the bias with all else, and nothing but one product is added to (B, T, d).
        """


class Dense(NamedTuple):
    """Whole matrices: W (m, k), its bias (m,), and V (m + 1, d) with its bias as the last row."""

    W: Tensor
    bias: Tensor
    V: Tensor

    def down(self, h: Tensor) -> Tensor:
        return F.linear(meet(h, self.W), self.W, self.bias)

    def add_up(self, output: Tensor, inner: Tensor) -> Tensor:
        return add_product(output, inner, self.V)


def extend(
    output: Tensor,
    h: Tensor,
    projections: Projections,
    *,
    activation: str,
    gate: GateView | None,
) -> Tensor:
    r""":math:`f + g \, V^\top [\phi(W h + b), 1]`.

    Shapes: output f (B, T, d), h (B, T, k) -> (B, T, d).
    """
    inner = ACTIVATIONS[activation](projections.down(h))
    inner = torch.cat([inner, inner.new_ones(1).expand(*inner.shape[:-1], 1)], -1)
    if gate is not None:
        gate.layer(h)
        inner = inner * gate.read().to(inner.dtype)
    return projections.add_up(output, inner)
