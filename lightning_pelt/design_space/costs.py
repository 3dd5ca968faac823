"""Costs: what each strategy of a design is, and how many parameters it takes in one block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from lightning_pelt import placement
from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.errors import unknown
from lightning_pelt.gate import Gate
from lightning_pelt.method import Method
from lightning_pelt.methods import Adapter, BitFit, LoRA, Prefix
from lightning_pelt.methods.prefix import key_value_widths

STRATEGIES = {"A": "adapter", "P": "prefix", "B": "BitFit", "L": "LoRA"}


class Cost(NamedTuple):
    """Parameters of a method in one block: ``fixed`` and ``unit`` for each step of its size.

    A step is one rank, one prefix token, one unit of the bottleneck. BitFit has no steps.
    """

    fixed: int
    unit: int

    def of(self, size: int) -> int:
        return self.fixed + self.unit * size


def template(letter: str, anatomy: Anatomy | None = None, gate: Gate | None = None) -> Method:
    """The method of a strategy, its size still to be set.

    Adapters go after every sublayer, LoRA on query and value of every attention, prefixes are flat
    (what is trained is what is stored), and BitFit is a bias for each linear layer of the block:
    the specification's count leaves norms out.
    """
    if letter == "A":
        present = placement.SUBLAYERS if anatomy is None else {s.role for s in anatomy.sites}
        return Adapter(sites=[s for s in placement.SUBLAYERS if s in present], gate=gate)
    if letter == "P":
        return Prefix(mlp=None, gate=gate)
    if letter == "B":
        return BitFit(sites=("*attention.*", "ffn.*"), gate=gate)
    if letter == "L":
        return LoRA(gate=gate)
    raise unknown("strategy", letter, STRATEGIES)


def sized(method: Method, size: int) -> Method:
    """``method`` with that rank, length or bottleneck; LoRA keeps its scale, whatever the rank."""
    if isinstance(method, Adapter):
        return replace(method, bottleneck=size)
    if isinstance(method, Prefix):
        return replace(method, length=size)
    if isinstance(method, LoRA):
        return replace(method, r=size, alpha=LoRA.alpha / LoRA.r * size)
    return method


def cost(method: Method, sites: Sequence[Site]) -> Cost:
    """What ``method`` costs at ``sites``. Gates are not part of it: they are counted apart."""
    if isinstance(method, Adapter):
        reads = sum(placement.reads(site, method.placement) for site in sites)
        writes = sum(site.d_out for site in sites)
        return Cost(writes, reads + writes + len(sites))
    if isinstance(method, Prefix):
        return Cost(0, sum(sum(key_value_widths(site)) for site in sites))
    if isinstance(method, LoRA):
        return Cost(0, sum(site.source.width + site.d_out for site in sites))
    return Cost(sum(site.d_out for site in sites), 0)
