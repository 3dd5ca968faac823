"""BitFit: trains biases only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods.base import Cost, Method, Part, Place
from lightning_pelt.methods.gate import Gate, GateView, passes_by
from lightning_pelt.methods.submodule import OutputRows, Removable, Submodule


@dataclass(frozen=True)
class BitFit(Method):
    """Bias-only tuning (Ben Zaken et al., 2022; https://arxiv.org/abs/2106.10199).

    Every linear layer and norm gets an additional bias, initialised to zero. Training it equals
    training the frozen bias. Layers without a bias get one, base parameters do not change, and a
    gate can close it.

    Args:
        sites: roles, or globs over them. ``norm`` and ``linear`` include those outside the blocks
            (embedding norm, pooler) if the group holds all blocks.
        gate: None for ungated.
        name: of its parameter group, gates and log lines.

    Example:
        >>> from lightning_pelt import BitFit, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attach(tiny_bert(), Plan.uniform(BitFit(sites=["query"]))).counts["bitfit"].trained
        64
    """

    sites: Sequence[str] = ("*attention.*", "ffn.*", "norm", "linear")
    gate: Gate | None = None
    name: str = "bitfit"

    weight_decay = False

    def where(self, anatomy: Anatomy) -> list[Site]:
        present = [p for p in self.sites if any(site.matches(p) for site in anatomy.sites)]
        optional = set(BitFit.sites)  # not every model has all of the default roles
        asked = [p for p in self.sites if p in present or p not in optional]
        return [site for site in anatomy.select(asked) if site.role != "ffn"]

    def cost(self, sites: Sequence[Site]) -> Cost:
        return Cost(sum(site.d_out for site in sites), 0)

    def build(self, place: Place) -> list[Part]:
        pairs = zip(place.sites, place.gates, strict=True)
        return [
            Part(site.path, f"{self.name}_{site.label.replace('.', '_')}", Bias(site, gate))
            for site, gate in pairs
        ]


class Bias(Submodule):
    """A bias added to a module's output, or to the channels of one site in it."""

    def __init__(self, site: Site, gate: GateView | None) -> None:
        super().__init__()
        self.site, self.gate, self.output_rows = site, gate, OutputRows(site.channels)
        self.bias = nn.Parameter(torch.zeros(site.d_out))

    def install(self, model: nn.Module) -> list[Removable]:
        return [model.get_submodule(self.site.path).register_forward_hook(self._add)]

    def _add(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return output if passes_by(self.gate, self.site, args[0]) else self(output)

    def forward(self, output: Tensor) -> Tensor:
        """(..., d_out) -> (..., d_out)."""
        bias: Tensor = self.output_rows(self.bias, output.shape[-1])
        if self.gate is not None:
            bias = bias * self.gate.read()
        return output + bias.to(output.dtype)
