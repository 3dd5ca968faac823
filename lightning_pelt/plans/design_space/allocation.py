"""Allocations: how a budget of parameters is divided among blocks."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, get_args

from lightning_pelt.plans.design_space.patterns import Block
from lightning_pelt.utils.errors import unknown

Allocation = Literal["increasing", "uniform", "decreasing"]
Over = Literal["blocks", "groups"]


def block_proportions(
    layout: Sequence[Sequence[Block]],
    allocation: str,
    *,
    over: str = "blocks",
    stacks: str = "concat",
) -> dict[Block, Fraction]:
    """The numbers to which the blocks' shares of the budget are proportional.

    ``increasing`` is i for the i-th block, or for all blocks of the i-th group if ``over`` is
    ``groups``. ``decreasing`` counts from the end. If ``stacks`` is ``per_stack``, blocks are
    numbered within their stack, and their numbers are divided by its depth.

    Raises:
        ValueError: ``allocation`` or ``over`` is unknown.
    """
    if allocation not in get_args(Allocation):
        raise unknown("allocation", allocation, get_args(Allocation))
    if over not in get_args(Over):
        raise unknown("unit of an allocation", over, get_args(Over))
    blocks = [(block, number) for number, group in enumerate(layout) for block in group]
    found: dict[Block, Fraction] = {}
    for block, group in blocks:
        units, index = len(layout), group
        if over == "blocks":
            sequence = [b for b, _ in blocks if stacks == "concat" or b.stack == block.stack]
            units, index = len(sequence), sequence.index(block)
        step = {"increasing": index + 1, "decreasing": units - index, "uniform": units}[allocation]
        found[block] = Fraction(step, units)
    return found
