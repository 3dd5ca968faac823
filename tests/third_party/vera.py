"""VeRA: one pair of frozen random matrices for all layers, two trained vectors for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt import Gate
from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods.base import Cost, Part, Place
from lightning_pelt.methods.gate import GateView
from lightning_pelt.methods.linear import LinearMethod, LinearUpdate
from lightning_pelt.methods.submodule import Removable, Submodule, refer


@dataclass(frozen=True)
class VeRA(LinearMethod):
    r"""Vector-based random matrix adaptation (Kopiczko et al., 2024;
    https://arxiv.org/abs/2310.11454), :math:`y = W x + \Lambda_b B \Lambda_d A x`.

    Args:
        r: rank of the random matrices.
        d_initial: initial value of the vectors d; the vectors b start at zero.
        sites: linear layers.
        gate: None is ungated.
        name: of its parameter group, gates and log lines.
    """

    r: int = 16
    d_initial: float = 0.1
    sites: Sequence[str] = ("query", "value")
    gate: Gate | None = None
    name: str = "vera"

    mergeable = True
    weight_decay = False  # a smaller d silences b, and the other way round

    def size(self, site: Site) -> str:
        return f"r={self.r}"

    def cost(self, sites: Sequence[Site]) -> Cost:
        return Cost(fixed=sum(site.d_out for site in sites), unit=len(sites))

    def sized(self, size: int) -> VeRA:
        return replace(self, r=size)

    def build_shared(self, anatomy: Anatomy, sites: Sequence[Site]) -> list[Part]:
        d_in = max(site.d_in for site in sites)
        d_out = max(site.d_out for site in sites)
        return [Part("", f"{self.name}_random", RandomPair(self.r, d_in, d_out))]

    def build(self, place: Place) -> list[Part]:
        pair = place.shared[f"{self.name}_random"]
        assert isinstance(pair, RandomPair)
        return [
            Part(site.path, f"{self.name}_{site.label}", VeRAUpdate(self, pair, site, gate))
            for site, gate in zip(place.sites, place.gates, strict=True)
        ]


class RandomPair(Submodule):
    """The frozen A (r, d_in) and B (d_out, r) of the largest layer; others take a corner."""

    A: Tensor
    B: Tensor

    def __init__(self, r: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.register_buffer("A", nn.init.kaiming_uniform_(torch.empty(r, d_in)))
        self.register_buffer("B", nn.init.kaiming_uniform_(torch.empty(d_out, r)))

    def install(self, model: nn.Module) -> list[Removable]:
        return []


class VeRAUpdate(LinearUpdate):
    """The vectors d (r,) and b (d_out,) of one layer."""

    pair: RandomPair

    def __init__(self, method: VeRA, pair: RandomPair, site: Site, gate: GateView | None) -> None:
        super().__init__(site, gate)
        refer(self, pair=pair)
        self.d = nn.Parameter(torch.full((method.r,), method.d_initial))
        self.b = nn.Parameter(torch.zeros(site.d_out))

    def update(self, x: Tensor) -> Tensor:
        low = F.linear(x.to(self.d.dtype), self.pair.A[:, : self.site.d_in]) * self.d
        return F.linear(low, self.pair.B[: self.site.d_out]) * self.b

    def delta(self) -> Tensor:
        A, B = self.pair.A[:, : self.site.d_in], self.pair.B[: self.site.d_out]
        return (self.b[:, None] * B) @ (self.d[:, None] * A)
