"""Builds the submodules and gates of a placed plan and puts them on the model."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.attach.gates import by_source, make_gates
from lightning_pelt.attach.without_values import device_of, needs_values, refuse_without_values
from lightning_pelt.methods.base import Method, Part, Place
from lightning_pelt.methods.gate import GateView
from lightning_pelt.methods.submodule import Removable, Submodule
from lightning_pelt.plans.plan import Placed

CHILD = "pelt"  # the name under which every host keeps its submodules


@dataclass(frozen=True)
class MethodCount:
    """Numbers of parameters of one method: in training, deployed, and of its gates.

    Example:
        >>> from lightning_pelt import Gate, LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attach(tiny_bert(), Plan.uniform(LoRA(r=2, gate=Gate()))).counts["lora"]
        MethodCount(trained=512, deployed=512, gates=132)
    """

    trained: int
    deployed: int
    gates: int


@dataclass
class Built:
    """What a builder has put on a model.

    Attributes:
        submodules: by method, in the order in which they were built.
        gates: by name, in network order.
        counts: numbers of parameters by method.
        undo: removes everything, in any order.
    """

    submodules: dict[str, list[Submodule]] = field(default_factory=dict)
    gates: dict[str, GateView] = field(default_factory=dict)
    counts: dict[str, MethodCount] = field(default_factory=dict)
    undo: list[Removable] = field(default_factory=list)


class Builder:
    """Builds a placed plan on a model.

    Every random weight depends on the seed, the method's name and its place only, so that two plans
    give the same weights to the submodules that they share.

    Args:
        model: is changed in place.
        anatomy: of the model.
        seed: of the weights; torch's CPU generator is seeded with it.
    """

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy, seed: int) -> None:
        self.model, self.anatomy, self.seed = model, anatomy, seed
        self.built = Built()

    def build(self, placed: Sequence[Placed]) -> Built:
        """Put the whole plan on the model.

        Raises:
            BaseException: of a method; the model is then as it was.
        """
        try:
            self._build(placed)
        except BaseException:
            for change in self.built.undo:
                change.remove()
            raise
        return self.built

    def _build(self, placed: Sequence[Placed]) -> None:
        gates = make_gates(self.anatomy, placed, self._seed)
        self.built.gates = gates.views
        for padding in gates.padding:
            self.built.undo += padding.install(self.model)
        for part in gates.layers:
            self._put(part)
        several = len({number for number, _, _ in placed}) > 1
        for number, method, sites in placed:
            shared = self._shared(method, sites, f"_g{number}" if several else "")
            for same in by_source(sites):
                self._seed(" ".join([method.name, *(f"{s.path}:{s.label}" for s in same)]))
                views = tuple(gates.of.get((id(method), site)) for site in same)
                with needs_values(method, self.model):
                    for part in method.build(Place(same, views, shared)):
                        self._own(part, method)
            self._count(method, sites)

    def _shared(self, method: Method, sites: list[Site], suffix: str) -> dict[str, Submodule]:
        self._seed(f"{method.name}{suffix}")
        shared = {}
        with needs_values(method, self.model):
            for part in method.build_shared(self.anatomy, sites):
                shared[part.key] = part.module
                self._own(part._replace(key=part.key + suffix), method)
        return shared

    def _seed(self, place: str) -> None:
        words = np.random.SeedSequence([self.seed, zlib.crc32(place.encode())])
        # Of the CPU alone: torch.manual_seed would seed the generators of all devices.
        torch.default_generator.manual_seed(int(words.generate_state(1, np.uint64)[0]))

    def _own(self, part: Part, method: Method) -> None:
        self._put(part)
        self.built.submodules.setdefault(method.name, []).append(part.module)

    def _put(self, part: Part) -> None:
        """Register a part as a child of its host and install its hooks."""
        host = self.model.get_submodule(part.path)
        if not hasattr(host, CHILD):
            host.add_module(CHILD, nn.ModuleDict().train(host.training))
            self.built.undo.append(_Child(host))
        children: nn.ModuleDict = getattr(host, CHILD)
        key, count = part.key.replace(".", "_"), 2
        while key in children:
            key, count = f"{part.key.replace('.', '_')}_{count}", count + 1
        children[key] = part.module.to(device_of(host, self.model)).train(host.training)
        self.built.undo += part.module.install(self.model)
        refuse_without_values(part.module)

    def _count(self, method: Method, sites: Sequence[Site]) -> None:
        before = self.built.counts.get(method.name, MethodCount(0, 0, 0))
        modules = self.built.submodules.get(method.name, ())
        total = sum(p.numel() for p in {p: None for m in modules for p in m.parameters()})
        views = [view for view in self.built.gates.values() if view.method == method.name]
        gates = sum(p.numel() for p in {p: None for view in views for p in view.parameters()})
        deployed = before.deployed + method.deployed(sites, total - before.trained)
        self.built.counts[method.name] = MethodCount(total, deployed, gates)


class _Child:
    """Removes the submodules of a host."""

    def __init__(self, host: nn.Module) -> None:
        self.host = host

    def remove(self) -> None:
        if CHILD in self.host._modules:
            delattr(self.host, CHILD)
