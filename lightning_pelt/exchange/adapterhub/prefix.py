"""Prefixes of AdapterHub, with their MLP or flat, and their gates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.exchange.adapterhub.family import Family
from lightning_pelt.exchange.adapterhub.hub_prefix import HubPrefix
from lightning_pelt.exchange.adapterhub.lora import chosen_blocks
from lightning_pelt.exchange.adapterhub.pieces import (
    Assignment,
    Piece,
    Placed,
    gate_here,
    gate_of,
    groups_of,
)
from lightning_pelt.exchange.adapterhub.settings import Settings, warn_of_training
from lightning_pelt.exchange.adapterhub.tensors import HubTensors
from lightning_pelt.methods import Prefix
from lightning_pelt.methods.prefix import key_value_widths


def prefix_pieces(settings: Settings, anatomy: Anatomy, name: str, family: Family) -> list[Piece]:
    """The pieces of a prefix: one per stack.

    Raises:
        ValueError: a setting that has no counterpart here.
    """
    activation = str(settings["non_linearity"]).lower()
    if not settings["flat"] and activation != "tanh":
        raise settings.refuse(
            "non_linearity",
            "the prefix MLP has tanh here. Call eject_prefix_tuning(name) on AdapterHub's model "
            "and save it again: the prefix is then flat",
        )
    if settings["use_gating"] and not settings["shared_gating"]:
        raise settings.refuse(
            "shared_gating", "keys and values of a prefix have one gate here, not two"
        )
    warn_of_training(settings)
    only = anatomy.stacks[0].name
    wanted: dict[str, dict[str, str]] = {}
    for location, (stack, role) in family.prefixes.items():
        if settings.values.get(location, True):
            wanted.setdefault(stack or only, {})[role] = location
    pieces: list[Piece] = []
    for stack, locations in wanted.items():
        blocks = [block for block in chosen_blocks(settings, anatomy) if block[0] == stack]
        if family.shifts and blocks:
            _refuse_some_blocks(settings, anatomy, blocks)
        method = (HubPrefix if family.shifts else Prefix)(
            length=settings["prefix_length"],
            mlp=None if settings["flat"] else settings["bottleneck_size"],
            sites=tuple(locations),
            gate=gate_here(settings["use_gating"]),
            name=name,
        )
        if blocks:
            groups = groups_of(method, blocks, anatomy)
            pieces += [PrefixPiece(group, locations) for group in groups]
    return pieces


def _refuse_some_blocks(
    settings: Settings, anatomy: Anatomy, blocks: Sequence[tuple[str, int]]
) -> None:
    (name,) = {stack for stack, _ in blocks}
    if len(blocks) < len(anatomy.stack(name).blocks):
        raise settings.refuse(
            "leave_out",
            f"AdapterHub's {anatomy.model_type} loses its relative positions where a block with a "
            "prefix follows one without, or the reverse. Train it again with attach(model, plan)",
        )


@dataclass(frozen=True)
class PrefixPiece(Piece):
    """The prefixes of a stack.

    Args:
        group: the group.
        locations: by role, the name of its prefixes in the file.
    """

    locations: dict[str, str]

    def shared(self, sites: Sequence[Site]) -> int:
        (method,) = self.group.methods
        flat = getattr(method, "mlp", None) is None
        return 0 if flat else len({site.role for site in sites})

    def assign(
        self, shared: list[Any], placed: list[Placed], tensors: HubTensors
    ) -> Iterator[Assignment]:
        for encoder in shared:
            yield from self._mlp(encoder, tensors)
        if not shared:
            yield from self._flat(placed, tensors)
        for (site,), (module,) in placed:
            if module.gate is not None:
                weight, bias = (
                    tensors.at("prefix_gates", site, part) for part in ("weight", "bias")
                )
                place = f"the gate of the prefix of block {site.block}"
                yield from gate_of(module.gate, weight, bias, place)

    def _mlp(self, encoder: Any, tensors: HubTensors) -> Iterator[Assignment]:
        location = self.locations[encoder.sites[0].role]
        targets = {
            "wte.weight": encoder.table,
            "control_trans.0.weight": encoder.up.weight,
            "control_trans.0.bias": encoder.up.bias,
            "control_trans.2.weight": encoder.out.weight,
            "control_trans.2.bias": encoder.out.bias,
        }
        for name, target in targets.items():
            source = tensors.of_model("prefix_tunings", f"{location}.{name}")
            yield Assignment(target, source, f"{location}.{name}")

    def _flat(self, placed: list[Placed], tensors: HubTensors) -> Iterator[Assignment]:
        """(length, keys and values of the first block, of the second, ...) in one vector."""
        by_role: dict[str, list[tuple[Site, Any]]] = {}
        for (site,), (module,) in placed:
            by_role.setdefault(site.role, []).append((site, module))
        for role, pairs in by_role.items():
            location = self.locations[role]
            whole = tensors.of_model("prefix_tunings", f"{location}.control_trans")
            widths = [width for site, _ in pairs for width in key_value_widths(site)]
            parts = _split(whole, widths, location, tensors)
            for number, (site, module) in enumerate(pairs):
                key, value = parts[2 * number], parts[2 * number + 1]
                yield Assignment(module.key, key, f"keys of the prefix of block {site.block}")
                yield Assignment(module.value, value, f"values of the prefix of block {site.block}")


def _split(
    whole: Tensor, widths: Sequence[int], location: str, tensors: HubTensors
) -> Sequence[Tensor]:
    if whole.numel() % sum(widths):
        raise ValueError(
            f"{tensors.folder}: {location}.control_trans has {whole.numel()} values, expected a "
            f"multiple of {sum(widths)}, for the keys and values of the model's blocks"
        )
    return whole.view(-1, sum(widths)).split(list(widths), -1)
