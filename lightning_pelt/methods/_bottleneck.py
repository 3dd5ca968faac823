"""The computation of bottlenecks, and the base class of the methods that use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods._ops import add_product, cast, match_dtype
from lightning_pelt.methods._sublayer_hooks import Placement, check_placement, sublayers
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.gate import GateView
from lightning_pelt.utils.errors import unknown

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
}


class BottleneckMethod(Method):
    """A method that puts bottlenecks at sublayers.

    Attributes:
        bottleneck: width of the bottleneck; None for ``reduction_factor`` times less than the
            model's width.
        sites: ``ffn``, ``attention``, ``cross_attention``.
        placement: where the bottleneck reads, see :class:`lightning_pelt.Adapter`.
        activation: one of :data:`ACTIVATIONS`.
    """

    bottleneck: int | None
    reduction_factor: int
    sites: Sequence[str]
    placement: Placement
    activation: str

    def __post_init__(self) -> None:
        check_placement(self.placement)
        if self.activation not in ACTIVATIONS:
            raise unknown("activation of an adapter", self.activation, ACTIVATIONS)
        width = self.bottleneck
        if (width is not None and width < 1) or self.reduction_factor < 1:
            raise ValueError(
                f"{type(self).__name__} has bottleneck={width}, "
                f"reduction_factor={self.reduction_factor}: both must be at least 1"
            )

    def where(self, anatomy: Anatomy) -> list[Site]:
        return sublayers(anatomy, self.sites, self.placement)

    def gate_width(self, site: Site) -> int:
        return self.reads(site)

    def reads(self, site: Site) -> int:
        """Width of what the bottleneck at ``site`` reads."""
        return site.source.width if self.placement == "parallel" else site.d_out

    def width(self, site: Site) -> int:
        """Width of the bottleneck at ``site``."""
        return self.bottleneck or max(1, site.d_out // self.reduction_factor)

    def size(self, site: Site) -> str:
        return f"m={self.width(site)}"

    def sized(self, size: int) -> BottleneckMethod:
        return replace(self, bottleneck=size)  # type: ignore[type-var]


class ProjectionPair(Protocol):
    """The two projections of a bottleneck, in the form that multiplies fastest."""

    def down(self, h: Tensor) -> Tensor:
        """h (B, T, k) -> (B, T, m), with the bias."""

    def add_up(self, output: Tensor, inner: Tensor) -> Tensor:
        """output (B, T, d), inner (B, T, m + 1) -> (B, T, d).

        The last channel of ``inner`` multiplies the bias. A gate on ``inner`` thus scales the bias
        too, and a single product is added to (B, T, d).
        """


class Dense(NamedTuple):
    """Full matrices: W (m, k), its bias (m,), and V (m + 1, d) with its bias as the last row."""

    W: Tensor
    bias: Tensor
    V: Tensor

    def down(self, h: Tensor) -> Tensor:
        return F.linear(match_dtype(h, self.W), self.W, self.bias)

    def add_up(self, output: Tensor, inner: Tensor) -> Tensor:
        return add_product(output, inner, self.V)


def extend(
    output: Tensor,
    h: Tensor,
    projections: ProjectionPair,
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
        gate.layer.compute(h)
        number = gate.number()
        inner = inner * (cast(gate.read(), inner.dtype) if number is None else number)
    return projections.add_up(output, inner)
