"""(IA)3 of AdapterHub, which rescales outputs of projections, before any activation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.exchange.adapterhub.family import LETTERS, QKV, Family
from lightning_pelt.exchange.adapterhub.lora import chosen_blocks, letters, whole_heads
from lightning_pelt.exchange.adapterhub.pieces import Assignment, Piece, Placed, groups_of
from lightning_pelt.exchange.adapterhub.settings import Settings
from lightning_pelt.exchange.adapterhub.tensors import HubTensors
from lightning_pelt.methods import IA3

# IA3 rescales the input of the site "ffn.out", and the output of the feed-forward at "ffn".
OUTPUTS = {"ffn.out": "ffn"}
INPUTS = {here: there for there, here in OUTPUTS.items()}


def ia3_pieces(settings: Settings, anatomy: Anatomy, name: str, family: Family) -> list[Piece]:
    """The pieces of a configuration with ``composition_mode="scale"``.

    Raises:
        ValueError: a setting that has no counterpart here.
    """
    if settings["use_gating"]:
        raise settings.refuse(
            "use_gating",
            "AdapterHub multiplies activations by the gate itself, and IA3(gate=...) by 1 + g "
            "(l - 1). Train it again with attach(model, plan)",
        )
    if settings["alpha"] != 1:
        raise settings.refuse("alpha", "(IA)3 has no factor beside its vectors: expected alpha=1")
    asked = letters(settings)
    blocks = chosen_blocks(settings, anatomy)
    inner = [OUTPUTS.get(role, role) for role in _feed_forward(settings, anatomy, family)]
    method = IA3(sites=(*(LETTERS[letter] for letter in asked), *inner), name=name)
    if family.merged and asked:
        if not whole_heads(anatomy, family):
            method = replace(method, sites=(*LETTERS.values(), *inner))
        return [FusedPiece(group, asked) for group in groups_of(method, blocks, anatomy)]
    return [VectorPiece(group) for group in groups_of(method, blocks, anatomy)]


def _feed_forward(settings: Settings, anatomy: Anatomy, family: Family) -> list[str]:
    """The projections of the feed-forward whose outputs are rescaled."""
    found = [family.inner(anatomy)] if settings["intermediate_lora"] else []
    return [*found, family.output] if settings["output_lora"] else found


@dataclass(frozen=True)
class VectorPiece(Piece):
    """One vector per projection."""

    def assign(
        self, shared: list[Any], placed: list[Placed], tensors: HubTensors
    ) -> Iterator[Assignment]:
        for sites, modules in placed:
            for site, module in zip(sites, modules, strict=True):
                vector = self.vector(site, tensors)
                place = f"the vector of {site.label} of block {site.block}"
                yield Assignment(module.vector, vector, place)

    def vector(self, site: Site, tensors: HubTensors) -> Tensor:
        """(d_out,)."""
        role = INPUTS.get(site.role, site.role)
        return tensors.at("loras", site, "lora_B", role=role).flatten()


@dataclass(frozen=True)
class FusedPiece(VectorPiece):
    """Vectors of thirds of a fused projection, whatever its channels mean.

    Args:
        group: the group.
        letters: the thirds that the file has.
    """

    letters: Sequence[str] = ()

    def vector(self, site: Site, tensors: HubTensors) -> Tensor:
        if site.channels is None:
            return super().vector(site, tensors)
        pieces = tensors.at("loras", site, "lora_B", role=QKV).flatten().chunk(len(self.letters))
        ones = torch.ones_like(pieces[0])
        by_letter = dict(zip(self.letters, pieces, strict=True))
        whole = torch.cat([by_letter.get(letter, ones) for letter in LETTERS])
        return whole[list(site.channels)]
