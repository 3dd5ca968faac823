"""Builds the submodules and gates of a placed plan and puts them on the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from lightning_pelt.anatomy import Site, Source
from lightning_pelt.attachment import CHILD, Attachment, MethodCount
from lightning_pelt.gate import GateLayer, GateView, Padding, Pool
from lightning_pelt.method import Method, Part, Place

Placed = Sequence[tuple[int, Method, list[Site]]]


class Builder:
    """Builds the submodules of a placed plan and puts them on the model."""

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment
        self.model, self.anatomy = attachment.model, attachment.anatomy
        self.padding: dict[tuple[str, int, str], Padding] = {}
        self.taken: dict[str, set[str]] = {}

    def build(self, placed: Placed) -> None:
        gates = Gates(self, placed)
        for number, method, sites in placed:
            suffix = f"_g{number}" if len(self.attachment.plan.groups) > 1 else ""
            shared = {}
            for part in method.build_shared(self.anatomy, sites):
                shared[part.key] = part.module
                self.put(part._replace(key=part.key + suffix), method.name)
            for same in _by_source(sites):
                place = Place(same, tuple(gates.of(method, site) for site in same), shared)
                for part in method.build(place):
                    self.put(part, method.name)
            self.count(method, sites)

    def put(self, part: Part, method: str | None) -> None:
        """Register a part as a child of its host and install its hooks."""
        host = self.model.get_submodule(part.path)
        if not hasattr(host, CHILD):
            host.add_module(CHILD, nn.ModuleDict().train(host.training))
            self.attachment._hosts.append(host)
        children: nn.ModuleDict = getattr(host, CHILD)
        key, count = part.key.replace(".", "_"), 2
        while key in children:
            key, count = f"{part.key.replace('.', '_')}_{count}", count + 1
        nearest = next(self.model.get_submodule(part.path).parameters(), None)
        device = self.model.device if nearest is None else nearest.device
        children[key] = part.module.to(device).train(host.training)
        self.attachment._handles += part.module.install(self.model)
        if method is not None:
            self.attachment.submodules.setdefault(method, []).append(part.module)

    def padding_of(self, site: Site) -> Padding | None:
        """The keeper of the mask over the tokens that ``site`` reads."""
        if site.block is None:
            return None
        # Keys and values of cross-attention read the encoder's tokens, all others the block's own.
        over_encoder = site.role in ("cross_attention.key", "cross_attention.value")
        where = (site.stack, site.block, "cross_attention" if over_encoder else "attention")
        if where not in self.anatomy.masks:
            return None
        if where not in self.padding:
            self.padding[where] = Padding(self.anatomy.masks[where])
            self.attachment._handles += self.padding[where].install(self.model)
        return self.padding[where]

    def count(self, method: Method, sites: Sequence[Site]) -> None:
        counts = self.attachment.counts
        before = counts.get(method.name, MethodCount(0, 0, 0))
        total = sum(p.numel() for p in self.attachment._weights(method.name))
        views = [view for view in self.attachment.gates.values() if view.method == method.name]
        parameters = {p for view in views for p in view.parameters()}
        deployed = before.deployed + method.deployed(sites, total - before.trained)
        gates = sum(p.numel() for p in parameters)
        counts[method.name] = MethodCount(total, deployed, gates)


class Gates:
    """Makes the gates of a plan; all that read one tensor in one way share a layer."""

    def __init__(self, builder: Builder, placed: Placed) -> None:
        self.builder = builder
        self.views: dict[tuple[int, Site], GateView] = {}
        paths = [site.path for site in builder.anatomy.sites]
        self.place = {path: paths.index(path) for path in paths}  # in the network
        self.order: dict[str, int] = {}
        reading: dict[tuple[Any, ...], list[tuple[str, Method, list[Site]]]] = {}
        for method, name, sites in self._named(placed):
            assert method.gate is not None
            own = () if method.gate_width(sites[0]) is None else (name,)
            alike = dataclasses.replace(method.gate, shared=False)
            key = (sites[0].source, alike, self._pool(method, sites[0]), *own)
            reading.setdefault(key, []).append((name, method, sites))
        for (source, _, pool, *own_name), members in reading.items():
            self._layer(source, pool, members, own=bool(own_name))
        gates = self.builder.attachment.gates
        self.builder.attachment.gates = dict(sorted(gates.items(), key=lambda g: self.order[g[0]]))

    def _named(self, placed: Placed) -> Iterator[tuple[Method, str, list[Site]]]:
        """Every gate once: its method, its name, and the sites that it gates."""
        names: set[str] = set()
        for _, method, sites in placed:
            if method.gate is None:
                continue
            labels = {site.role for site in sites}
            for same in _by_source(sites):
                for gated in [list(same)] if method.gate.shared else [[site] for site in same]:
                    single = len(labels) == 1 or len(gated) > 1
                    site = method.name if single else f"{method.name}.{gated[0].label}"
                    base = name = f"{self.builder.anatomy.block_label(gated[0])}/{site}"
                    count = 2
                    while name in names:
                        name, count = f"{base}_{count}", count + 1
                    names.add(name)
                    yield method, name, gated

    def _pool(self, method: Method, site: Site) -> Pool:
        assert method.gate is not None
        if site.role in ("norm", "linear"):  # may run before the block's mask is known
            return "token"
        if method.gate.pool != "auto":
            return method.gate.pool
        return "token" if self.builder.anatomy.stack(site.stack).causal else "masked"

    def _layer(
        self,
        source: Source,
        pool: Pool,
        members: list[tuple[str, Method, list[Site]]],
        *,
        own: bool,
    ) -> None:
        sites = [name.partition("/")[2] for name, _, _ in members]
        _, method, gated = members[0]
        assert method.gate is not None
        width = method.gate_width(gated[0])
        width = source.width if width is None else width
        layer = GateLayer(width, sites, gate=method.gate, pool=pool)
        layer.padding = None if pool == "token" else self.builder.padding_of(gated[0])
        layer.source = None if own else source
        host = gated[0].path if own else source.path
        self.builder.put(Part(host, f"gate_{sites[0]}" if own else f"gate_{pool}", layer), None)
        for index, (name, method, gated) in enumerate(members):
            view = GateView(name, method.name, layer, index)
            self.builder.attachment.gates[name] = view
            self.order[name] = self.place.get(gated[0].path, -1)
            for site in gated:
                self.views[id(method), site] = view

    def of(self, method: Method, site: Site) -> GateView | None:
        return self.views.get((id(method), site))


def _by_source(sites: Sequence[Site]) -> list[tuple[Site, ...]]:
    """Sites grouped by block and by the tensor they read, in network order."""
    groups: dict[tuple[str, int | None, Source], list[Site]] = {}
    for site in sites:
        groups.setdefault((site.stack, site.block, site.source), []).append(site)
    return [tuple(group) for group in groups.values()]
