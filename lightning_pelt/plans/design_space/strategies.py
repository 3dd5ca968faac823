"""Strategies: the letters of a design, and the method of each letter."""

from __future__ import annotations

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods import Adapter, BitFit, LoRA, Prefix
from lightning_pelt.methods._sublayer_hooks import SUBLAYERS
from lightning_pelt.methods.base import Cost, Method
from lightning_pelt.methods.gate import Gate
from lightning_pelt.plans.design_space.patterns import Block
from lightning_pelt.utils.errors import unknown

STRATEGIES = {"A": "adapter", "P": "prefix", "B": "BitFit", "L": "LoRA"}


def template(letter: str, anatomy: Anatomy | None = None, gate: Gate | None = None) -> Method:
    """The method of a strategy, with its default size.

    Adapters go after every sublayer, LoRA on query and value of every attention. Prefixes have no
    MLP, so that their trained and stored parameters are the same. BitFit trains a bias for each
    linear layer of the block, without the norms, as in the specification's count.

    Raises:
        ValueError: the letter is none of A, P, B, L.
    """
    if letter == "A":
        present = SUBLAYERS if anatomy is None else {s.role for s in anatomy.sites}
        return Adapter(sites=[s for s in SUBLAYERS if s in present], gate=gate)
    if letter == "P":
        return Prefix(mlp=None, gate=gate)
    if letter == "B":
        return BitFit(sites=("*attention.*", "ffn.*"), gate=gate)
    if letter == "L":
        return LoRA(gate=gate)
    raise unknown("strategy", letter, STRATEGIES)


def strategy_costs(letter: str, anatomy: Anatomy) -> dict[Block, Cost | None]:
    """The cost of a strategy in each block that has a site for it.

    Computed once for each anatomy: a search solves the budgets of thousands of designs.

    Raises:
        ValueError: the model cannot take the method.
    """
    key = ("strategy_costs", letter)
    if key not in anatomy.memo:
        method = template(letter, anatomy)
        sites: dict[Block, list[Site]] = {}
        for site in method.where(anatomy):
            if site.block is not None:
                sites.setdefault(Block(site.stack, site.block), []).append(site)
        anatomy.memo[key] = {block: method.cost(here) for block, here in sites.items()}
    return anatomy.memo[key]
