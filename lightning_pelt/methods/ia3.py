"""(IA)3: learned rescaling of keys, values and inner activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods._ops import linear_output
from lightning_pelt.methods.base import Cost, Method, Part, Place
from lightning_pelt.methods.gate import Gate, GateView, passes_by
from lightning_pelt.methods.submodule import OutputRows, Removable, Submodule, WeightUpdate


@dataclass(frozen=True)
class IA3(Method):
    r"""(IA)3 (Liu et al., 2022; https://arxiv.org/abs/2205.05638): :math:`l_k \odot k`,
    :math:`l_v \odot v` and :math:`l_{ff} \odot \phi(W_1 x)`, with all vectors initialised to one.

    A gate turns a vector into :math:`1 + g (l - 1)`.

    Args:
        sites: ``key`` and ``value`` rescale outputs, ``ffn.out`` its input.
        gate: None for ungated.
        name: of its parameter group, gates and log lines.

    Example:
        >>> from lightning_pelt import IA3, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attach(tiny_bert(), Plan.uniform(IA3())).counts["ia3"].trained
        256
    """

    sites: Sequence[str] = ("key", "value", "ffn.out")
    gate: Gate | None = None
    name: str = "ia3"

    mergeable = True
    weight_decay = False  # a vector of zeros silences its activation

    def where(self, anatomy: Anatomy) -> list[Site]:
        dense = any(site.role == "ffn.out" for site in anatomy.sites)
        # A mixture of experts has no single inner activation: only keys and values are rescaled.
        return anatomy.select([site for site in self.sites if dense or site != "ffn.out"])

    def cost(self, sites: Sequence[Site]) -> Cost:
        return Cost(sum(site.d_in if _on_input(site) else site.d_out for site in sites), 0)

    def build(self, place: Place) -> list[Part]:
        pairs = zip(place.sites, place.gates, strict=True)
        return [
            Part(site.path, f"{self.name}_{site.label.replace('.', '_')}", Rescale(site, gate))
            for site, gate in pairs
        ]


def _on_input(site: Site) -> bool:
    return site.role == "ffn.out"


class Rescale(Submodule):
    """A vector that multiplies a linear layer's output, or the input of ``ffn.out``."""

    def __init__(self, site: Site, gate: GateView | None) -> None:
        super().__init__()
        self.site, self.gate, self.output_rows = site, gate, OutputRows(site.channels)
        self.on_input = _on_input(site)
        self.vector = nn.Parameter(torch.ones(site.d_in if self.on_input else site.d_out))

    def install(self, model: nn.Module) -> list[Removable]:
        host = model.get_submodule(self.site.path)
        if self.on_input:
            return [host.register_forward_pre_hook(self._scale_input)]
        return [host.register_forward_hook(self._scale_output)]

    def _scale_input(self, module: nn.Module, args: tuple) -> tuple:
        return args if passes_by(self.gate, self.site, args[0]) else (self(args[0]), *args[1:])

    def _scale_output(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return output if passes_by(self.gate, self.site, args[0]) else linear_output(output, self)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        change = self.output_rows(self.vector - 1, x.shape[-1])
        if self.gate is not None:
            change = change * self.gate.read()
        return x * (1 + change).to(x.dtype)

    def weight_updates(self) -> list[WeightUpdate]:
        if self.on_input:
            return [WeightUpdate(self.site, inputs=self.vector, gate=self.gate)]
        return [WeightUpdate(self.site, scale=self.vector, gate=self.gate)]
