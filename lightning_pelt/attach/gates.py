"""The gates of a plan: their names, the tensors that they read, and the layers that they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from lightning_pelt.anatomy import Anatomy, Site, Source
from lightning_pelt.anatomy.sites import EMBEDDINGS
from lightning_pelt.methods.base import Method, Part
from lightning_pelt.methods.gate import Gate, GateLayer, GateView, Padding, Pool
from lightning_pelt.plans.plan import Placed


class Gated(NamedTuple):
    """One gate to be made: its method, its name, and the sites that it gates."""

    method: Method
    gate: Gate
    name: str
    sites: list[Site]


class Reading(NamedTuple):
    """The properties that the gates of one layer share."""

    source: Source
    gate: Gate
    pool: Pool
    own: str  # the gate's name, if its method passes the tensor that it reads; else ""


class PlacedGates(NamedTuple):
    """The gates of a plan, their layers, and their padding masks, not yet on the model."""

    views: dict[str, GateView]  # by name, in network order
    of: dict[tuple[int, Site], GateView]  # by the method's place in the plan, and the site
    layers: list[Part]
    padding: list[Padding]


def make_gates(
    anatomy: Anatomy, placed: Sequence[Placed], seed: Callable[[str], None]
) -> PlacedGates:
    """The gates of a placed plan. All gates that read one tensor in one way share a layer.

    Args:
        anatomy: of the model.
        placed: the methods and their sites.
        seed: seeds torch's generator for the weights of the gate of that name.
    """
    return _Maker(anatomy, placed, seed).make()


class _Maker:
    def __init__(
        self, anatomy: Anatomy, placed: Sequence[Placed], seed: Callable[[str], None]
    ) -> None:
        self.anatomy, self.placed, self.seed = anatomy, placed, seed
        self.padding: dict[tuple[str, int, str], Padding] = {}

    def make(self) -> PlacedGates:
        readings: dict[Reading, list[Gated]] = {}
        for gated in self._gated():
            readings.setdefault(self._reading(gated), []).append(gated)
        found = PlacedGates({}, {}, [], [])
        layers: list[Part] = []
        order: dict[str, int] = {}
        paths = [site.path for site in self.anatomy.sites]
        for reading, members in readings.items():
            layer = self._layer(reading, members)
            host = members[0].sites[0].path if reading.own else reading.source.path
            key = layer.names[0] if reading.own else reading.pool
            layers.append(Part(host, f"gate_{key}", layer))
            for index, gated in enumerate(members):
                self.seed(gated.name)
                layer.reset_gate(index)
                view = GateView(gated.name, gated.method.name, layer, index)
                path = gated.sites[0].path
                order[gated.name] = paths.index(path) if path in paths else -1
                found.views[gated.name] = view
                for site in gated.sites:
                    found.of[id(gated.method), site] = view
        views = dict(sorted(found.views.items(), key=lambda item: order[item[0]]))
        return found._replace(views=views, layers=layers, padding=[*self.padding.values()])

    def _gated(self) -> Iterator[Gated]:
        names: set[str] = set()
        for _, method, sites in self.placed:
            if method.gate is None:
                continue
            single = len({site.role for site in sites}) == 1
            for same in by_source(sites):
                for gated in [list(same)] if method.gate.shared else [[site] for site in same]:
                    one = single or len(gated) > 1
                    site = method.name if one else f"{method.name}.{gated[0].label}"
                    name = _unique(f"{self.anatomy.block_label(gated[0])}/{site}", names)
                    yield Gated(method, method.gate, name, gated)

    def _reading(self, gated: Gated) -> Reading:
        method, site = gated.method, gated.sites[0]
        own = gated.name if method.gate_width(site) is not None else ""
        gate = dataclasses.replace(gated.gate, shared=False)
        return Reading(site.source, gate, self._pool(gated.gate, site), own)

    def _pool(self, gate: Gate, site: Site) -> Pool:
        if site.role in ("norm", "linear", *EMBEDDINGS):  # may run before the block's mask is known
            return "token"
        anatomy = self.anatomy
        if gate.pool in ("masked", "all") and site.stack in anatomy.rowless:
            raise ValueError(
                f"a gate with pool={gate.pool!r} cannot sit at {site.path}: the {site.stack} of "
                f"{anatomy.model_type} does not compute on (B, T, d), so that a gate would pool "
                "over the rows of a batch. Use Gate(pool='token')"
            )
        if gate.pool != "auto":
            return gate.pool
        unsafe = anatomy.stack(site.stack).causal or site.stack in anatomy.unread
        return "token" if unsafe or site.stack in anatomy.rowless else "masked"

    def _layer(self, reading: Reading, members: list[Gated]) -> GateLayer:
        method, site = members[0].method, members[0].sites[0]
        names = [gated.name.partition("/")[2] for gated in members]
        width = method.gate_width(site)
        layer = GateLayer(
            reading.source.width if width is None else width,
            names,
            gate=members[0].gate,
            pool=reading.pool,
            source=None if reading.own else reading.source,
            padding=None if reading.pool == "token" else self._padding(site, reading.pool),
        )
        if any(site.repeated for gated in members for site in gated.sites):
            layer.remember_input()
        return layer

    def _padding(self, site: Site, pool: Pool) -> Padding | None:
        """The padding mask of the tokens that ``site`` reads.

        Raises:
            ValueError: the gate needs one, and no argument of the attention is known to be it.
        """
        if site.block is None:
            return None
        # Keys and values of cross-attention read tokens of the encoder, all others of the block.
        over_encoder = site.role in ("cross_attention.key", "cross_attention.value")
        where = (site.stack, site.block, "cross_attention" if over_encoder else "attention")
        if where not in self.anatomy.masks:
            if pool == "masked" and site.stack in self.anatomy.unread:
                raise ValueError(
                    f"the gate at {site.path} cannot tell padding from words: the attentions of "
                    f"the {site.stack} of {self.anatomy.model_type} have no mask of a known name, "
                    "or not yet when the gate runs. Use Gate(pool='token'), or Gate(pool='all') to "
                    "count padding too"
                )
            return None
        packs = self.anatomy.stack(site.stack).causal and not over_encoder
        return self.padding.setdefault(where, Padding(self.anatomy.masks[where], packs=packs))


def by_source(sites: Sequence[Site]) -> list[tuple[Site, ...]]:
    """Sites grouped by block and by the tensor they read, in network order."""
    groups: dict[tuple[str, int | None, Source], list[Site]] = {}
    for site in sites:
        groups.setdefault((site.stack, site.block, site.source), []).append(site)
    return [tuple(group) for group in groups.values()]


def _unique(name: str, taken: set[str]) -> str:
    """``name``, or ``name_2``, ... if it is taken. The result is added to ``taken``."""
    base, count = name, 2
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    taken.add(name)
    return name
