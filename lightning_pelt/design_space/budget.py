"""Budgets: from a number of parameters to ranks, bottlenecks and prefix lengths, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain
from typing import Literal, get_args

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.design_space.costs import STRATEGIES, Cost, cost, sized, template
from lightning_pelt.design_space.patterns import Block
from lightning_pelt.errors import unknown
from lightning_pelt.gate import Gate
from lightning_pelt.plan import Group, Plan

Allocation = Literal["increasing", "uniform", "decreasing"]
Over = Literal["blocks", "groups"]
TOLERANCE = Fraction(5, 100)
SEARCH = 4000  # steps of 1% up and down, in search of a budget that can be met


@dataclass(frozen=True)
class Allotment:
    """What one block gets.

    Attributes:
        block: its stack and number.
        group: number of its group, from 0.
        share: the parameters that the allocation means for it.
        costs: of its strategies, by letter.
        sizes: rank, bottleneck or length by letter; 0 of BitFit.
    """

    block: Block
    group: int
    share: int
    costs: Mapping[str, Cost]
    sizes: Mapping[str, int]

    @property
    def parameters(self) -> dict[str, int]:
        """Number of parameters by letter."""
        return {letter: cost.of(self.sizes[letter]) for letter, cost in self.costs.items()}

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    @property
    def least(self) -> int:
        """The block's parameters with every size at 1."""
        return sum(cost.of(1) for cost in self.costs.values())

    @property
    def under_budget(self) -> bool:
        """Whether it holds BitFit alone, which cannot fill its share."""
        return not any(cost.unit for cost in self.costs.values()) and self.total < self.share


@dataclass(frozen=True)
class Solution:
    """Sizes for every tuned block of a model.

    Attributes:
        anatomy: of the model.
        target: the budget as a number of parameters; head and gates are not part of it.
        blocks: in the order of groups, then of the network.
    """

    anatomy: Anatomy
    target: int
    blocks: tuple[Allotment, ...]

    @property
    def total(self) -> int:
        """Number of parameters that the sizes come to."""
        return sum(block.total for block in self.blocks)

    @property
    def within(self) -> bool:
        """Whether the total is within 5% of the target."""
        return abs(self.total - self.target) <= TOLERANCE * self.target

    def plan(self, gate: Gate | None = None) -> Plan:
        """Concrete methods in concrete blocks; neighbours that are alike share a group."""
        alike: dict[tuple[int, str, tuple[tuple[str, int], ...]], list[int]] = {}
        for each in self.blocks:
            key = (each.group, each.block.stack, tuple(each.sizes.items()))
            alike.setdefault(key, []).append(each.block.number)
        return Plan(
            [
                Group([sized(template(k, self.anatomy, gate), v) for k, v in wanted], blocks, stack)
                for (_, stack, wanted), blocks in alike.items()
            ],
            norms=False,
        )


def weights(
    layout: Sequence[Sequence[Block]],
    allocation: str,
    *,
    over: str = "blocks",
    stacks: str = "concat",
) -> dict[Block, Fraction]:
    """What each block's share of the budget is proportional to.

    ``increasing`` is i of the i-th block, or of the i-th group with ``over`` groups; ``decreasing``
    the same from the end. With ``per_stack`` blocks count within their stack, as a fraction of its
    depth.

    Raises:
        ValueError: an unknown allocation, or ``over`` something else than blocks or groups.
    """
    if allocation not in get_args(Allocation):
        raise unknown("allocation", allocation, get_args(Allocation))
    if over not in get_args(Over):
        raise unknown("unit of an allocation", over, get_args(Over))
    every = [(block, number) for number, group in enumerate(layout) for block in group]
    found: dict[Block, Fraction] = {}
    for block, group in every:
        alike = [b for b, _ in every if stacks == "concat" or b.stack == block.stack]
        units, place = len(layout), group
        if over == "blocks":
            units, place = len(alike), alike.index(block)
        step = {"increasing": place + 1, "decreasing": units - place, "uniform": units}[allocation]
        found[block] = Fraction(step, units)
    return found


@dataclass(frozen=True)
class Sizing:
    """The question of which sizes come to a budget (specification, section 4.1).

    Args:
        anatomy: of the model.
        layout: the blocks of every group, see :func:`lightning_pelt.design_space.layout`.
        strategies: letters of each group's methods; an empty string leaves a group untuned, and its
            share goes to the others.
        allocation: ``increasing``, ``uniform`` or ``decreasing``.
        over: whether shares change from block to block or from group to group.
        stacks: ``concat`` or ``per_stack``, as in the layout.
    """

    anatomy: Anatomy
    layout: Sequence[Sequence[Block]]
    strategies: Sequence[str]
    allocation: str = "uniform"
    over: str = "blocks"
    stacks: str = "concat"

    @cached_property
    def costs(self) -> dict[Block, dict[str, Cost]]:
        """Costs by tuned block and letter.

        Raises:
            ValueError: no block is tuned, or a method finds no site in a block.
        """
        if not any(self.strategies):
            raise ValueError("no group has a method: give at least one letters of A, P, B, L")
        methods = {letter: template(letter, self.anatomy) for letter in chain(*self.strategies)}
        sites = {letter: method.where(self.anatomy) for letter, method in methods.items()}
        found: dict[Block, dict[str, Cost]] = {}
        for group, letters in zip(self.layout, self.strategies, strict=True):
            for block in group if letters else ():
                here = {k: [s for s in sites[k] if (s.stack, s.block) == block] for k in letters}
                if missing := [letter for letter in letters if not here[letter]]:
                    raise ValueError(
                        f"{block} of {self.anatomy.model_type} has no site for "
                        f"{STRATEGIES[missing[0]]}: leave {missing[0]!r} out of its group, "
                        f"{letters!r}"
                    )
                found[block] = {letter: cost(methods[letter], here[letter]) for letter in letters}
        return found

    @cached_property
    def _weights(self) -> dict[Block, Fraction]:
        every = weights(self.layout, self.allocation, over=self.over, stacks=self.stacks)
        tuned = {block: every[block] for block in self.costs}
        whole = sum(tuned.values())
        return {block: weight / whole for block, weight in tuned.items()}

    def solve(self, target: int) -> Solution:
        """Sizes for ``target`` parameters, head and gates excluded.

        A block's share, less what its methods cost at any size, is divided equally among those that
        have a size; sizes are rounded down, to 1 at least, and the rest buys the dearest steps that
        still fit. Parameters are equalised, not ranks. Nothing is inflated for a block that cannot
        fill its share.

        Returns:
            The solution, be it within 5% of the target or not: see :attr:`Solution.within`.
        """
        group_of = {block: i for i, group in enumerate(self.layout) for block in group}
        blocks = []
        for block, weight in self._weights.items():
            share, costs = int(target * weight), self.costs[block]
            blocks.append(Allotment(block, group_of[block], share, costs, _sizes(costs, share)))
        return Solution(self.anatomy, target, tuple(blocks))

    def solve_within(self, target: int) -> Solution:
        """As :meth:`solve`, and within 5% of the target.

        Raises:
            ValueError: it cannot be; the message says why, and names the nearest budget that can.
        """
        solution = self.solve(target)
        if solution.within:
            return solution
        # The nearest target that its own solution meets, to the next percent.
        factors = chain.from_iterable((1.01**k, 1.01**-k) for k in range(1, SEARCH))
        nearby = (self.solve(round(target * factor)) for factor in factors)
        found = next((s for s in nearby if s.total and s.within), None)
        remedy = (
            f"the nearest reachable total is {found.total:,}, of budget={found.target}"
            if found
            else "no budget can be met: change the methods of its groups"
        )
        raise ValueError(
            f"a budget of {target:,} parameters comes to {solution.total:,} on "
            f"{self.anatomy.model_type}, {abs(solution.total / target - 1):.1%} off, where 5% are "
            f"allowed: {_reason(solution)}; {remedy}"
        )


def _sizes(costs: Mapping[str, Cost], share: int) -> dict[str, int]:
    """Sizes by letter that fit one block's share."""
    units = {letter: cost.unit for letter, cost in costs.items() if cost.unit}
    each = (share - sum(cost.fixed for cost in costs.values())) // max(1, len(units))
    found = {letter: max(1, each // units[letter]) if letter in units else 0 for letter in costs}
    left = share - sum(cost.of(found[letter]) for letter, cost in costs.items())
    for letter in sorted(units, key=lambda letter: -units[letter]):
        more = max(0, left // units[letter])
        found[letter] += more
        left -= more * units[letter]
    return found


def _reason(solution: Solution) -> str:
    """Why a solution misses its target: by the block that misses its share most."""
    sign = 1 if solution.total > solution.target else -1
    worst = max(solution.blocks, key=lambda each: sign * (each.total - each.share))
    names = " and ".join(STRATEGIES[letter] for letter in worst.costs)
    if worst.under_budget:
        return (
            f"{worst.block} holds {names} alone, {worst.total:,} parameters whatever the budget, "
            f"and its share is {worst.share:,}"
        )
    if worst.total > worst.share:
        return (
            f"{worst.block} with {names} takes at least {worst.least:,}, and its share is "
            f"{worst.share:,}"
        )
    step = min(cost.unit for cost in worst.costs.values() if cost.unit)
    return (
        f"sizes are whole numbers, and one step in {worst.block} with {names} costs at least "
        f"{step:,} where {worst.share - worst.total:,} of its {worst.share:,} are left"
    )
