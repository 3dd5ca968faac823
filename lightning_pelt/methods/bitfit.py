"""BitFit: trains biases only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods._ops import linear_output
from lightning_pelt.methods.base import Cost, Method, Part, Place
from lightning_pelt.methods.gate import Gate, GateView, passes_by
from lightning_pelt.methods.submodule import OutputRows, Removable, Submodule, WeightUpdate

log = logging.getLogger(__name__)

CHANNELS_FIRST = (nn.GroupNorm, _NormBase)  # group, batch and instance norms


@dataclass(frozen=True)
class BitFit(Method):
    """Bias-only tuning (Ben Zaken et al., 2022; https://arxiv.org/abs/2106.10199).

    Every linear layer and norm gets an additional bias, initialised to zero. Training it equals
    training the frozen bias. Layers without a bias get one, base parameters do not change, and a
    gate can close it.

    These are the biases of the base. A new head is trained as a whole in any case. The pretrained
    head of a language model is not tuned, although the paper speaks of all biases: ``lm_head.bias``
    and the biases of BERT's ``cls.predictions`` keep their values. So do those of convolutions.

    Args:
        sites: roles, or globs over them. ``norm`` and ``linear`` include those outside the blocks
            (embedding norm, pooler) if the group holds all blocks.
        gate: None for ungated. It reads the last dimension, so that norms with channels in another
            one (Moonshine's group norm) are left out, with a warning.
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

    mergeable = True
    weight_decay = False

    def where(self, anatomy: Anatomy) -> list[Site]:
        present = [p for p in self.sites if any(site.matches(p) for site in anatomy.sites)]
        optional = set(BitFit.sites)  # not every model has all of the default roles
        asked = [p for p in self.sites if p in present or p not in optional]
        found = [site for site in anatomy.select(asked) if site.role != "ffn"]
        unread = {s.path: None for s in found if self.gate is not None and not _channels_last(s)}
        if unread:
            log.warning(
                "%s: no bias in %s of %s, whose channels are not the last dimension, which a gate "
                "reads",
                *(self.name, ", ".join(unread), anatomy.model_type),
            )
        return [site for site in found if site.path not in unread]

    def cost(self, sites: Sequence[Site]) -> Cost:
        return Cost(sum(site.d_out for site in sites), 0)

    def build(self, place: Place) -> list[Part]:
        pairs = zip(place.sites, place.gates, strict=True)
        return [
            Part(site.path, f"{self.name}_{site.label.replace('.', '_')}", Bias(site, gate))
            for site, gate in pairs
        ]


def _channels_last(site: Site) -> bool:
    """Whether the norm at ``site`` scales the last dimension of what it reads."""
    return site.role != "norm" or site.source.width == site.d_in


class Bias(Submodule):
    """A bias added to a module's output, or to the channels of one site in it."""

    def __init__(self, site: Site, gate: GateView | None) -> None:
        super().__init__()
        self.site, self.gate, self.output_rows = site, gate, OutputRows(site.channels)
        self.channels_last = _channels_last(site)
        self.bias = nn.Parameter(torch.zeros(site.d_out))

    def install(self, model: nn.Module) -> list[Removable]:
        host = model.get_submodule(self.site.path)
        self.channels_last = self.channels_last and not isinstance(host, CHANNELS_FIRST)
        if self.gate is not None and not self.channels_last:
            raise ValueError(
                f"a gate cannot read the input of {self.site.path}, whose channels are not the "
                "last dimension: use BitFit(gate=None), or leave out the norms with sites=..."
            )
        return [host.register_forward_hook(self._add)]

    def _add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        return output if passes_by(self.gate, self.site, args[0]) else linear_output(output, self)

    def forward(self, output: Tensor) -> Tensor:
        """(..., d_out) -> (..., d_out), or (B, d_out, ...) -> (B, d_out, ...).

        Raises:
            ValueError: neither the last dimension nor the second is that of the channels.
        """
        if not self.channels_last:
            return self._with_bias(output.movedim(1, -1)).movedim(-1, 1)
        return self._with_bias(output)

    def _with_bias(self, output: Tensor) -> Tensor:
        bias: Tensor = self.output_rows(self.bias, output.shape[-1])
        if bias.shape[-1] != output.shape[-1]:
            raise ValueError(
                f"{self.site.path} has {bias.shape[-1]} channels, and its output of shape "
                f"{tuple(output.shape)} has them neither in the last nor in the second dimension"
            )
        if self.gate is not None:
            bias = bias * self.gate.read()
        return output + bias.to(output.dtype)

    def weight_updates(self) -> list[WeightUpdate]:
        return [WeightUpdate(self.site, bias=self.bias, gate=self.gate)]
