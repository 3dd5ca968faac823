"""Compacter and PHM adapters of AdapterHub."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.exchange.adapterhub.bottleneck import blocks_by_width, common
from lightning_pelt.exchange.adapterhub.pieces import (
    Assignment,
    Piece,
    Placed,
    gate_here,
    gate_of,
    groups_of,
)
from lightning_pelt.exchange.adapterhub.settings import Settings
from lightning_pelt.exchange.adapterhub.tensors import HubTensors
from lightning_pelt.methods import Compacter
from lightning_pelt.methods._stacked_bottlenecks import shape_key

SIDES = {"down": "adapter_down.0", "up": "adapter_up"}


def compacter_pieces(settings: Settings, anatomy: Anatomy, name: str) -> list[Piece]:
    """The pieces of a configuration with ``phm_layer``.

    Raises:
        ValueError: a setting that has no counterpart here.
    """
    sites, where, activation = common(settings, anatomy)
    if settings["shared_W_phm"]:
        raise settings.refuse("shared_W_phm", "every projection has its own factors here")
    if not settings["phm_bias"]:
        raise settings.refuse("phm_bias", "the projections of a Compacter have biases here")
    if settings["scaling"] != 1.0:
        raise settings.refuse("scaling", "a Compacter has no scale here")
    pieces: list[Piece] = []
    for width, blocks in blocks_by_width(settings, anatomy).items():
        method = Compacter(
            n=settings["phm_dim"],
            rank=settings["phm_rank"],
            bottleneck=width,
            share_rule=settings["shared_phm_rule"],
            factorized=settings["factorized_phm_W"],
            learn_rule=settings["learn_phm"],
            rule_std=None if settings["learn_phm"] else 1.0,
            sites=sites,
            placement=where,
            activation=activation,
            gate=gate_here(settings["use_gating"]),
            name=name,
        )
        if width % method.n:
            raise settings.refuse("phm_dim", f"it does not divide the bottleneck of {width}")
        pieces += [
            KroneckerPiece(group, settings["factorized_phm_rule"], method.share_rule)
            for group in groups_of(method, blocks, anatomy)
        ]
    if method.share_rule and len(pieces) > 1:
        raise ValueError(
            f"{settings.folder} has one rule for adapters of several widths, or of a part of the "
            "blocks of an encoder-decoder: a rule is shared within one group of a plan here"
        )
    return pieces


@dataclass(frozen=True)
class KroneckerPiece(Piece):
    """Bottlenecks made of Kronecker products.

    Args:
        group: the group.
        rule_in_factors: whether the file has the rule as products of rank 1.
        share_rule: whether the model has one rule.
    """

    rule_in_factors: bool = False
    share_rule: bool = True

    def shared(self, sites: Sequence[Site]) -> int:
        return int(self.share_rule) + len({site.stack for site in sites})

    def assign(
        self, shared: list[Any], placed: list[Placed], tensors: HubTensors
    ) -> Iterator[Assignment]:
        if self.share_rule:
            rule = self._rule(lambda name: _shared_rule(tensors, name))
            yield Assignment(shared[0].A, rule, "the rule of the Compacter")
        for stack in shared[int(self.share_rule) :]:
            for shape in dict.fromkeys(stack.shapes):
                of_shape = zip(stack.sites, stack.shapes, strict=True)
                own = [site for site, each in of_shape if each == shape]
                yield from self._stack(stack, shape_key(shape), own, tensors)
        for sites, modules in placed:
            for site, module in zip(sites, modules, strict=True):
                if module.net.gate is not None:
                    weight, bias = (
                        tensors.at("adapters", site, f"gate.{part}") for part in ("weight", "bias")
                    )
                    yield from gate_of(module.net.gate, weight, bias, f"the gate of {site.path}")

    def _stack(
        self, stack: Any, key: str, sites: Sequence[Site], tensors: HubTensors
    ) -> Iterator[Assignment]:
        """All bottlenecks of one shape, whose weights are stacked here."""

        def all_of(name: str) -> Tensor:
            return torch.stack([tensors.at("adapters", site, name) for site in sites])

        for side, name in SIDES.items():
            factors = getattr(stack, f"{side}_{key}")
            place = f"the {side}-projections of the Compacter"
            if factors.rank is None:
                yield Assignment(factors.W, all_of(f"{name}.W"), place)
            else:
                yield Assignment(factors.S, all_of(f"{name}.W_left"), place)
                yield Assignment(factors.R, all_of(f"{name}.W_right"), place)
            if not self.share_rule:
                rules = [self._own_rule(site, name, tensors) for site in sites]
                yield Assignment(factors.rule.A, torch.stack(rules), f"{place}: rules")
        yield Assignment(getattr(stack, f"bias_{key}"), all_of("adapter_down.0.b"), "its biases")
        yield Assignment(getattr(stack, f"out_{key}"), all_of("adapter_up.b"), "its biases")

    def _own_rule(self, site: Site, name: str, tensors: HubTensors) -> Tensor:
        return self._rule(lambda part: tensors.at("adapters", site, f"{name}.{part}"))

    def _rule(self, of: Callable[[str], Tensor]) -> Tensor:
        if self.rule_in_factors:
            return torch.bmm(of("phm_rule_left"), of("phm_rule_right"))
        return of("phm_rule")


def _shared_rule(tensors: HubTensors, name: str) -> Tensor:
    try:
        return tensors.of_model("shared_parameters", name)
    except ValueError as error:
        raise ValueError(
            f"{error}. adapters 1.3 does not write the shared rule of a model without a place for "
            "heads, such as BertModel: save the adapter from an AutoAdapterModel"
        ) from error
