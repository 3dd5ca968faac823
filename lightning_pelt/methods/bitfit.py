"""BitFit: only biases are tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.gate import Gate, GateView
from lightning_pelt.method import Method, Part, Place
from lightning_pelt.submodule import Channels, Removable, Submodule


@dataclass(frozen=True)
class BitFit(Method):
    """Bias-only tuning (Ben Zaken et al., 2022; https://arxiv.org/abs/2106.10199).

    Every linear layer and norm gets a bias of its own, starting at zero, beside the frozen one.
    Training it is training the frozen one; models without biases get them, base parameters stay
    untouched, and a gate can close it.

    Args:
        sites: roles, or globs over them. ``norm`` and ``linear`` include those outside the blocks
            (embedding norm, pooler), as long as the group holds all blocks.
        gate: None is ungated.
        name: of its parameter group, gates and log lines.
    """

    sites: Sequence[str] = ("*attention.*", "ffn.*", "norm", "linear")
    gate: Gate | None = None
    name: str = "bitfit"

    def where(self, anatomy: Anatomy) -> list[Site]:
        present = [p for p in self.sites if any(site.matches(p) for site in anatomy.sites)]
        optional = set(BitFit.sites)  # not every model has all of the default roles
        asked = [p for p in self.sites if p in present or p not in optional]
        return [site for site in anatomy.select(asked) if site.role != "ffn"]

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
        self.path, self.gate, self.channels = site.path, gate, Channels(site.channels)
        self.bias = nn.Parameter(torch.zeros(site.d_out))

    def install(self, model: nn.Module) -> list[Removable]:
        return [model.get_submodule(self.path).register_forward_hook(self._add)]

    def _add(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self(output)

    def forward(self, output: Tensor) -> Tensor:
        """(..., d_out) -> (..., d_out)."""
        bias: Tensor = self.channels(self.bias, output.shape[-1])
        if self.gate is not None:
            bias = bias * self.gate.read()
        return output + bias.to(output.dtype)
