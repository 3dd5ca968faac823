"""Bottleneck adapters of AdapterHub: ``seq_bn``, ``double_seq_bn``, ``par_bn`` and their kin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.exchange.adapterhub.pieces import (
    Assignment,
    Piece,
    Placed,
    all_blocks,
    gate_here,
    gate_of,
    groups_of,
)
from lightning_pelt.exchange.adapterhub.settings import Settings, warn_of_training
from lightning_pelt.exchange.adapterhub.tensors import HubTensors
from lightning_pelt.methods import Adapter
from lightning_pelt.methods._sublayer_hooks import Placement

ROLES = {"mh_adapter": "attention", "cross_adapter": "cross_attention", "output_adapter": "ffn"}
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "swish": "silu",
    "silu": "silu",
    "tanh": "tanh",
}
FOLDED = ("learned", "channel")  # scales that are multiplied into the up-projection


class Common(NamedTuple):
    """What dense and Kronecker bottlenecks have in common."""

    sites: tuple[str, ...]
    placement: Placement
    activation: str


def common(settings: Settings, anatomy: Anatomy) -> Common:
    """Sites, placement and activation.

    Raises:
        ValueError: a setting that has no counterpart here.
    """
    for name in ("ln_before", "ln_after", "inv_adapter"):
        if settings[name]:
            raise settings.refuse(
                name, "a norm or an invertible layer of the adapter has no counterpart here"
            )
    activation = str(settings["non_linearity"]).lower()
    if activation not in ACTIVATIONS:
        raise settings.refuse(
            "non_linearity", f"the activations of adapters here are {', '.join(ACTIVATIONS)}"
        )
    if not isinstance(settings["scaling"], (int, float)) and settings["scaling"] not in FOLDED:
        raise settings.refuse("scaling", f"expected a number, {' or '.join(FOLDED)}")
    warn_of_training(settings)
    present = {site.role for site in anatomy.sites}
    sites = tuple(role for name, role in ROLES.items() if settings[name] and role in present)
    if not sites:
        raise ValueError(
            f"{settings.folder} has adapters at none of {', '.join(ROLES)}, or "
            f"{anatomy.model_type} has none of these sublayers"
        )
    return Common(sites, placement(settings, anatomy), ACTIVATIONS[activation])


def placement(settings: Settings, anatomy: Anatomy) -> Placement:
    """Where the adapter reads and writes, as a placement of :class:`lightning_pelt.Adapter`.

    Raises:
        ValueError: no placement does so.
    """
    post_norm = any(site.post_norm is not None for site in anatomy.sites)
    if settings["is_parallel"]:
        if not settings["original_ln_after"]:
            raise settings.refuse("original_ln_after", "no placement leaves the sublayer's sum out")
        return "he"
    before, after = settings["original_ln_before"], settings["original_ln_after"]
    residual = settings["residual_before_ln"]
    if before and after and residual is True:
        return "pfeiffer"
    if not before and after and residual in (True, False):
        return "sequential"
    if before and not after and residual is False and not post_norm:
        return "pfeiffer"  # without norms, the sum is taken once in both
    raise ValueError(
        f"{settings.folder} has original_ln_before={before}, original_ln_after={after}, "
        f"residual_before_ln={residual!r}: no placement of Adapter does so on "
        f"{anatomy.model_type}. Train it again with attach(model, plan)"
    )


def blocks_by_width(settings: Settings, anatomy: Anatomy) -> dict[int, list[tuple[str, int]]]:
    """The blocks that have an adapter, by the width of its bottleneck.

    Raises:
        ValueError: ``reduction_factor`` gives none for a block.
    """
    factor = settings["reduction_factor"]
    by_width: dict[int, list[tuple[str, int]]] = {}
    for index, block in enumerate(all_blocks(anatomy)):
        if index in settings["leave_out"]:
            continue
        own = factor
        if isinstance(factor, Mapping):
            own = factor.get(str(index), factor.get("default"))
        if not isinstance(own, (int, float)) or own <= 0:
            raise settings.refuse(
                "reduction_factor", f"it has no positive number for block {index}"
            )
        by_width.setdefault(max(1, int(anatomy.width // own)), []).append(block)
    return by_width


def bottleneck_pieces(settings: Settings, anatomy: Anatomy, name: str) -> list[Piece]:
    """The pieces of a configuration of dense bottlenecks."""
    sites, where, activation = common(settings, anatomy)
    scaling = settings["scaling"]
    plain = isinstance(scaling, (int, float)) and scaling > 0
    pieces: list[Piece] = []
    for width, blocks in blocks_by_width(settings, anatomy).items():
        method = Adapter(
            bottleneck=width,
            sites=sites,
            placement=where,
            scale=float(scaling) if plain else 1.0,
            activation=activation,
            gate=gate_here(settings["use_gating"]),
            name=name,
        )
        scale = None if plain else scaling
        pieces += [DensePiece(group, scale) for group in groups_of(method, blocks, anatomy)]
    return pieces


@dataclass(frozen=True)
class DensePiece(Piece):
    """Dense bottlenecks.

    Args:
        group: the group.
        scale: a number or one of :data:`FOLDED`, to be multiplied into the up-projection; None if
            the method scales.
    """

    scale: float | str | None = None

    def assign(
        self, shared: list[Any], placed: list[Placed], tensors: HubTensors
    ) -> Iterator[Assignment]:
        for sites, modules in placed:
            for site, module in zip(sites, modules, strict=True):
                yield from self._one(site, module.net, tensors)

    def _one(self, site: Site, net: Any, tensors: HubTensors) -> Iterator[Assignment]:
        def of(name: str) -> Tensor:
            return tensors.at("adapters", site, name)

        place = f"the adapter after {site.role} of block {site.block}"
        up, bias = of("adapter_up.weight"), of("adapter_up.bias")
        if self.scale is not None:
            factor = of("scaling") if isinstance(self.scale, str) else up.new_tensor([self.scale])
            up, bias = up * factor[:, None], bias * factor
        yield Assignment(net.down, of("adapter_down.0.weight"), f"{place}: down-projection")
        yield Assignment(net.down_bias, of("adapter_down.0.bias"), f"{place}: its bias")
        yield Assignment(net.up, up, f"{place}: up-projection")
        yield Assignment(net.up_bias, bias, f"{place}: its bias")
        if net.gate is not None:
            yield from gate_of(net.gate, of("gate.weight"), of("gate.bias"), f"{place}: gate")
