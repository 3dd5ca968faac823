"""LoRA of AdapterHub, fused projections of queries, keys and values included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.exchange.adapterhub.family import LETTERS, QKV, Family
from lightning_pelt.exchange.adapterhub.pieces import (
    Assignment,
    Piece,
    Placed,
    all_blocks,
    gate_here,
    gate_of,
    groups_of,
)
from lightning_pelt.exchange.adapterhub.settings import Settings
from lightning_pelt.exchange.adapterhub.tensors import HubTensors
from lightning_pelt.methods import LoRA

RETRAIN = "Train it again with attach(model, plan)"


def chosen_blocks(settings: Settings, anatomy: Anatomy) -> list[tuple[str, int]]:
    """The blocks that ``leave_out`` does not name."""
    left_out = settings["leave_out"]
    return [block for i, block in enumerate(all_blocks(anatomy)) if i not in left_out]


def letters(settings: Settings) -> list[str]:
    """The projections of ``attn_matrices``, in the order of a fused one.

    Raises:
        ValueError: one of them is not extended here.
    """
    asked = settings["attn_matrices"] if settings["selfattn_lora"] else []
    if strange := sorted(set(asked) - LETTERS.keys()):
        raise settings.refuse(
            "attn_matrices", f"expected some of {', '.join(LETTERS)}, and it has {strange}"
        )
    return [letter for letter in LETTERS if letter in asked]


def whole_heads(anatomy: Anatomy, family: Family) -> bool:
    """Whether the thirds of a fused projection are queries, keys and values, as in GPT-2.

    In DeBERTa the projection is arranged by heads, and AdapterHub takes its thirds all the same.
    """
    first = next(site for site in anatomy.sites if site.role == "attention.query")
    return first.channels == tuple(range(first.d_out))


def lora_pieces(settings: Settings, anatomy: Anatomy, name: str, family: Family) -> list[Piece]:
    """The pieces of a LoRA.

    Raises:
        ValueError: a setting that has no counterpart here.
    """
    for field in ("use_dora", "vera_d", "vera_b"):
        if settings[field]:
            raise settings.refuse(field, f"DoRA and VeRA have no counterpart here. {RETRAIN}")
    method = LoRA(
        r=settings["r"],
        alpha=float(settings["alpha"]),
        dropout=settings["dropout"],
        gate=gate_here(settings["use_gating"]),
        name=name,
    )
    asked = letters(settings)
    attention = [LETTERS[letter] for letter in asked]
    feed_forward = [family.inner(anatomy)] if settings["intermediate_lora"] else []
    feed_forward += [family.output] if settings["output_lora"] else []
    blocks = chosen_blocks(settings, anatomy)
    if not family.merged or not asked:
        whole = replace(method, sites=(*attention, *feed_forward))
        return [LoRAPiece(group) for group in groups_of(whole, blocks, anatomy)]
    if whole_heads(anatomy, family):
        whole = replace(method, sites=(*attention, *feed_forward))
        return [ThirdsPiece(group, asked) for group in groups_of(whole, blocks, anatomy)]
    if settings["use_gating"]:
        raise settings.refuse(
            "use_gating",
            f"AdapterHub gates thirds of the fused projection of {anatomy.model_type}, which are "
            f"not its queries, keys and values. {RETRAIN}",
        )
    wide = replace(
        method, r=method.r * len(asked), alpha=method.alpha * len(asked), sites=[*LETTERS.values()]
    )
    pieces: list[Piece] = [BlocksPiece(g, asked) for g in groups_of(wide, blocks, anatomy)]
    if feed_forward:
        rest = replace(method, sites=tuple(feed_forward), name=f"{name}_ffn")
        pieces += [LoRAPiece(group) for group in groups_of(rest, blocks, anatomy)]
    return pieces


@dataclass(frozen=True)
class LoRAPiece(Piece):
    """LoRA of separate projections: one pair A, B of each in the file."""

    def parts(self, sites: tuple[Site, ...]) -> int:
        return 1 + len({site.path for site in sites})

    def assign(
        self, shared: list[Any], placed: list[Placed], tensors: HubTensors
    ) -> Iterator[Assignment]:
        for sites, (down, *ups) in placed:
            A = torch.cat([self.A(site, tensors) for site in sites])
            yield Assignment(down.A, A, f"A of {sites[0].label} of block {sites[0].block}")
            for up in ups:
                for key, index, gate in zip(up.keys, up.indices, up.gates, strict=True):
                    site = sites[index]
                    place = f"{site.label} of block {site.block}"
                    target = getattr(up, f"B_{key}")
                    yield Assignment(target, self.B(site, tensors), f"B of {place}")
                    if gate is not None:
                        yield from gate_of(gate, *self.gate(site, tensors), f"the gate of {place}")

    def A(self, site: Site, tensors: HubTensors) -> Tensor:
        """(r, d_in)."""
        return tensors.at("loras", site, "lora_A")

    def B(self, site: Site, tensors: HubTensors) -> Tensor:
        """(d_out, r)."""
        return tensors.at("loras", site, "lora_B")

    def gate(self, site: Site, tensors: HubTensors) -> tuple[Tensor, Tensor]:
        """Weight (1, d_in) and bias (1,)."""
        return tensors.at("loras", site, "gate.weight"), tensors.at("loras", site, "gate.bias")


@dataclass(frozen=True)
class ThirdsPiece(LoRAPiece):
    """LoRA of a fused projection whose thirds are queries, keys and values: pieces of one tensor.

    Args:
        group: the group.
        letters: the projections that the file has.
    """

    letters: Sequence[str] = ()

    def A(self, site: Site, tensors: HubTensors) -> Tensor:
        return self._part(site, tensors, "lora_A")

    def B(self, site: Site, tensors: HubTensors) -> Tensor:
        return self._part(site, tensors, "lora_B")

    def gate(self, site: Site, tensors: HubTensors) -> tuple[Tensor, Tensor]:
        return (
            self._part(site, tensors, "gate.weight"),
            self._part(site, tensors, "gate.bias"),
        )

    def _part(self, site: Site, tensors: HubTensors, name: str) -> Tensor:
        if site.channels is None:  # not of the attention
            return tensors.at("loras", site, name)
        pieces = tensors.at("loras", site, name, role=QKV).chunk(len(self.letters))
        by_part = dict(zip((LETTERS[letter] for letter in self.letters), pieces, strict=True))
        return by_part[site.role.rpartition(".")[2]]


@dataclass(frozen=True)
class BlocksPiece(LoRAPiece):
    """LoRA of thirds of a fused projection that are not queries, keys and values.

    Its update of the whole projection has one low-rank product in each third. With all A on top of
    each other, every row of it is a row of one B, and zero elsewhere.

    Args:
        group: the group, whose rank is that of all products together.
        letters: the thirds that the file has.
    """

    letters: Sequence[str] = ()

    def A(self, site: Site, tensors: HubTensors) -> Tensor:
        return tensors.at("loras", site, "lora_A", role=QKV)

    def B(self, site: Site, tensors: HubTensors) -> Tensor:
        parts = tensors.at("loras", site, "lora_B", role=QKV).chunk(len(self.letters))
        width, rank = parts[0].shape
        whole = parts[0].new_zeros(len(LETTERS) * width, rank * len(parts))
        for number, (letter, part) in enumerate(zip(self.letters, parts, strict=True)):
            row = list(LETTERS).index(letter) * width
            whole[row : row + width, number * rank : (number + 1) * rank] = part
        assert site.channels is not None
        return whole[list(site.channels)]
