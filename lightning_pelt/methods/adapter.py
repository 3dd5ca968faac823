"""Bottleneck adapters: a small two-layer network after, or beside, a sublayer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_pelt import bottleneck, placement
from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.bottleneck import Dense, extend
from lightning_pelt.gate import Gate, GateView
from lightning_pelt.method import Method, Part, Place
from lightning_pelt.placement import Placement


@dataclass(frozen=True)
class Adapter(Method):
    r"""Bottleneck adapter, :math:`z = f + g \, W_{up}\,\phi(W_{down} h + b_{down}) + g \, b_{up}`
    (Houlsby et al., 2019; https://arxiv.org/abs/1902.00751).

    With ``f`` the sublayer's output before the residual sum, the placements differ in ``h``:

    - ``sequential``: ``h = f``.
    - ``parallel``: ``h`` is the sublayer's input (He et al., 2022; https://arxiv.org/abs/2110.04366).
    - ``unipelt``: ``h = LN(f + a)`` with the block's own norm and residual ``a``, which then runs a
      second time over ``z + a``, as in the code of Pfeiffer et al. and of UniPELT. For blocks that
      normalise after the sum: BERT, RoBERTa, DeBERTa, DistilBERT, BART, ...
    - ``auto``: ``unipelt`` where the block allows it, else ``sequential``.

    Args:
        bottleneck: its width; by default ``reduction_factor`` times smaller than the model's.
        sites: ``ffn``, ``attention``, ``cross_attention``.
        activation: ``relu``, ``gelu``, ``gelu_new`` (its tanh approximation), ``silu``, ``tanh``.
        init_std: of both projections; biases start at 0.
        gate: None is ungated. It reads ``h``.
        name: of its parameter group, gates and log lines.
    """

    bottleneck: int | None = None
    reduction_factor: int = 16
    sites: Sequence[str] = ("ffn",)
    placement: Placement = "auto"
    activation: str = "relu"
    init_std: float = 0.02
    gate: Gate | None = None
    name: str = "adapter"

    def __post_init__(self) -> None:
        placement.check(self.placement)
        bottleneck.check(self)

    def where(self, anatomy: Anatomy) -> list[Site]:
        return placement.sublayers(anatomy, self.sites, self.placement)

    def gate_width(self, site: Site) -> int:
        return placement.reads(site, self.placement)

    def build(self, place: Place) -> list[Part]:
        parts = []
        for site, gate in zip(place.sites, place.gates, strict=True):
            net = Bottleneck(self, site, gate, placement.reads(site, self.placement))
            placed = placement.place(net, site, self.placement)
            parts.append(Part(placed.host, f"{self.name}_{site.role}", placed))
        return parts


class Bottleneck(nn.Module):
    """Down-projection, activation, gated up-projection, added to what it is given."""

    def __init__(self, method: Adapter, site: Site, gate: GateView | None, d_in: int) -> None:
        super().__init__()
        width = method.bottleneck or max(1, site.d_out // method.reduction_factor)
        self.gate, self.method = gate, method
        self.down = nn.Parameter(torch.empty(width, d_in))
        self.down_bias = nn.Parameter(torch.zeros(width))
        self.up = nn.Parameter(torch.empty(site.d_out, width))
        self.up_bias = nn.Parameter(torch.zeros(site.d_out))
        nn.init.normal_(self.down, std=method.init_std)
        nn.init.normal_(self.up, std=method.init_std)

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (B, T, d), h (B, T, d_in) -> (B, T, d)."""
        up = torch.cat([self.up.T, self.up_bias[None]])
        weights = Dense(self.down, self.down_bias, up)
        return extend(output, h, weights, activation=self.method.activation, gate=self.gate)
