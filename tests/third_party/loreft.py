"""LoReFT: a low-rank intervention on the residual stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt import Gate
from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods._ops import first
from lightning_pelt.methods.base import Method, Part, Place
from lightning_pelt.methods.gate import GateView
from lightning_pelt.methods.submodule import Removable, Submodule


@dataclass(frozen=True)
class LoReFT(Method):
    r"""Low-rank representation finetuning (Wu et al., 2024; https://arxiv.org/abs/2404.03592),
    :math:`h + g R^\top (W h + b - R h)`, on every token; R starts with orthonormal rows.

    Args:
        r: rank of the subspace.
        gate: None is ungated.
        name: of its parameter group, gates and log lines.
    """

    r: int = 4
    gate: Gate | None = None
    name: str = "loreft"

    def where(self, anatomy: Anatomy) -> list[Site]:
        return anatomy.select("block")

    def size(self, site: Site) -> str:
        return f"r={self.r}"

    def sized(self, size: int) -> LoReFT:
        return replace(self, r=size)

    def build(self, place: Place) -> list[Part]:
        (site,), (gate,) = place.sites, place.gates
        return [Part(site.path, self.name, Intervention(self, site, gate))]


class Intervention(Submodule):
    """R (r, d), W (r, d) and b (r,) of one block's output."""

    def __init__(self, method: LoReFT, site: Site, gate: GateView | None) -> None:
        super().__init__()
        self.path, self.gate = site.path, gate
        self.R = nn.Parameter(nn.init.orthogonal_(torch.empty(method.r, site.d_out)))
        self.W = nn.Linear(site.d_out, method.r)

    def install(self, model: nn.Module) -> list[Removable]:
        return [model.get_submodule(self.path).register_forward_hook(self._add)]

    def _add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return first(output, self)

    def forward(self, h: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        x = h.to(self.R.dtype)
        change = (self.W(x) - F.linear(x, self.R)) @ self.R
        if self.gate is not None:
            change = change * self.gate.read().to(change.dtype)
        return h + change.to(h.dtype)
