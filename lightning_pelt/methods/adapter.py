"""Bottleneck adapters: a small two-layer network after, or parallel to, a sublayer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy import Site
from lightning_pelt.methods._bottleneck import BottleneckMethod, Dense, extend
from lightning_pelt.methods._sublayer_hooks import Placement, hook_sublayer
from lightning_pelt.methods.base import Cost, Part, Place
from lightning_pelt.methods.gate import Gate, GateView


@dataclass(frozen=True)
class Adapter(BottleneckMethod):
    r"""Bottleneck adapter, :math:`z = f + g \, W_{up}\,\phi(W_{down} h + b_{down}) + g \, b_{up}`
    (Houlsby et al., 2019; https://arxiv.org/abs/1902.00751).

    With ``f`` the sublayer's output before the residual sum, the placements differ in ``h``:

    - ``sequential``: ``h = f``.
    - ``parallel``: ``h`` is the sublayer's input (He et al., 2022; https://arxiv.org/abs/2110.04366).
    - ``unipelt``: ``h = LN(f + a)`` with the block's norm and residual ``a``; the norm then runs a
      second time, over ``z + a``, as in the code of Pfeiffer et al. and of UniPELT. For blocks that
      normalise after the sum: BERT, RoBERTa, DeBERTa, DistilBERT, BART, ...
    - ``auto``: ``unipelt`` if the block allows it, else ``sequential``.

    Args:
        bottleneck: width of the bottleneck; by default the model's width divided by
            ``reduction_factor``.
        reduction_factor: see ``bottleneck``.
        sites: ``ffn``, ``attention``, ``cross_attention``.
        activation: ``relu``, ``gelu``, ``gelu_new`` (its tanh approximation), ``silu``, ``tanh``.
        init_std: standard deviation of both projections; biases start at 0.
        gate: None for ungated. It reads ``h``.
        name: of its parameter group, gates and log lines.

    Example:
        >>> from lightning_pelt import Adapter, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> plan = Plan.uniform(Adapter(bottleneck=4, sites=["attention", "ffn"]))
        >>> attach(tiny_bert(), plan).counts["adapter"].trained
        1168
    """

    bottleneck: int | None = None
    reduction_factor: int = 16
    sites: Sequence[str] = ("ffn",)
    placement: Placement = "auto"
    activation: str = "relu"
    init_std: float = 0.02
    gate: Gate | None = None
    name: str = "adapter"

    def cost(self, sites: Sequence[Site]) -> Cost:
        reads = sum(self.reads(site) for site in sites)
        writes = sum(site.d_out for site in sites)
        return Cost(writes, reads + writes + len(sites))

    def build(self, place: Place) -> list[Part]:
        parts = []
        for site, gate in zip(place.sites, place.gates, strict=True):
            net = Bottleneck(self, site, gate)
            hooked = hook_sublayer(net, site, self.placement)
            parts.append(Part(hooked.host, f"{self.name}_{site.role}", hooked))
        return parts


class Bottleneck(nn.Module):
    """Down-projection, activation and gated up-projection, added to the output."""

    def __init__(self, method: Adapter, site: Site, gate: GateView | None) -> None:
        super().__init__()
        width, d_in = method.width(site), method.reads(site)
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
