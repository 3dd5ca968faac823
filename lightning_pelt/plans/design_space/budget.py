"""Budgets: from a number of parameters to ranks, bottlenecks and prefix lengths in each block."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import chain

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.methods.base import Cost
from lightning_pelt.plans.design_space.allocation import block_proportions
from lightning_pelt.plans.design_space.patterns import Block
from lightning_pelt.plans.design_space.solution import FILLED_TOLERANCE, Allotment, Solution
from lightning_pelt.plans.design_space.strategies import STRATEGIES, strategy_costs

log = logging.getLogger(__name__)

SEARCH_STEPS = 4000  # of 1% up and down from a target that cannot be met


@dataclass(frozen=True)
class Sizing:
    """Finds the sizes with which a design meets a budget (specification, section 4.1).

    Args:
        anatomy: of the model.
        layout: the blocks of every group, see :func:`lightning_pelt.plans.design_space.layout`.
        strategies: letters of each group's methods. A group with an empty string is not tuned, and
            the other groups get its share.
        allocation: ``increasing``, ``uniform`` or ``decreasing``.
        over: whether shares change from block to block or from group to group.
        stacks: ``concat`` or ``per_stack``, as in the layout.

    Example:
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.plans.design_space import layout
        >>> from lightning_pelt.testing import tiny_bert
        >>> groups = layout("uniform", {"encoder": 2}, groups=2)
        >>> sizing = Sizing(examine(tiny_bert()), groups, ["L", "L"], allocation="increasing")
        >>> [dict(allotment.sizes) for allotment in sizing.solve(3_000).blocks]
        [{'L': 7}, {'L': 15}]
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
            ValueError: no block is tuned, or a block has no site for a method.
        """
        if not any(self.strategies):
            raise ValueError(
                "no group has a method: give at least one of them letters of A, P, B, L"
            )
        by_letter = {k: strategy_costs(k, self.anatomy) for k in chain(*self.strategies)}
        found: dict[Block, dict[str, Cost]] = {}
        for group, letters in zip(self.layout, self.strategies, strict=True):
            for block in group if letters else ():
                if missing := [letter for letter in letters if block not in by_letter[letter]]:
                    raise ValueError(
                        f"{block} of {self.anatomy.model_type} has no site for "
                        f"{STRATEGIES[missing[0]]}: leave {missing[0]!r} out of its group, "
                        f"{letters!r}"
                    )
                costs = {letter: by_letter[letter][block] for letter in letters}
                found[block] = {letter: cost for letter, cost in costs.items() if cost is not None}
        return found

    @cached_property
    def _shares(self) -> dict[Block, Fraction]:
        """Each tuned block's fraction of the budget."""
        every = block_proportions(self.layout, self.allocation, over=self.over, stacks=self.stacks)
        tuned = {block: every[block] for block in self.costs}
        whole = sum(tuned.values())
        return {block: proportion / whole for block, proportion in tuned.items()}

    def solve(self, target: int) -> Solution:
        """Sizes for ``target`` parameters, without the head and gates.

        The fixed costs of a block's methods are subtracted from its share. The rest is divided
        equally among the methods that have a size: the parameters are equal, not the ranks. Sizes
        are rounded down, but to 1 at least; then the most expensive steps that still fit are added.
        No other block gets more if a block cannot fill its share.

        Returns:
            The solution. It may miss the target by more than 5%, see :attr:`Solution.within`.
        """
        group_of = {block: i for i, group in enumerate(self.layout) for block in group}
        blocks = []
        for block, fraction in self._shares.items():
            share, costs = int(target * fraction), self.costs[block]
            blocks.append(Allotment(block, group_of[block], share, costs, _sizes(costs, share)))
        return Solution(self.anatomy, target, tuple(blocks))

    def nearest(self, target: int) -> Solution:
        """Sizes for ``target`` parameters, which may still miss it.

        They are those of :meth:`solve` if these are within 5%. Otherwise, what is left of the
        blocks' shares is carried from block to block, see :func:`fill`, and if more than 1% is
        left then, one more step is added that exceeds the target by 1% at most.
        """
        solution = self.solve(target)
        if solution.within:
            return solution
        filled = fill(solution)
        more = () if filled.within else _one_more(filled)
        return next((each for each in more if each.within), filled)

    def solve_within(self, target: int) -> Solution:
        """Sizes for ``target`` parameters, without the head and gates.

        They are those of :meth:`nearest`: within 5% of the target, or within 1% if leftovers had
        to be carried. Budgets whose sizes need no carrying keep these sizes, since plans hold
        budgets, and saved weights have these sizes. The log says why more than 1% is missed.

        Raises:
            ValueError: no sizes are; the message gives the reason and the nearest budget that can
                be met.
        """
        solution = self.nearest(target)
        if solution.within:
            if abs(solution.total - target) > FILLED_TOLERANCE * target:
                log.info(
                    "%s parameters on %s, %s of the budget of %s. Leftovers are carried between "
                    "blocks only if more than 5%% of the budget is missed. Here, %s",
                    *(f"{solution.total:,}", self.anatomy.model_type),
                    *(f"{solution.total / target:.1%}", f"{target:,}", _reason(solution)),
                )
            return solution
        found = self._nearby(solution)
        remedy = (
            f"the nearest reachable total is {found.total:,}, with budget={found.target}"
            if found
            else "no budget can be met: change the methods of its groups"
        )
        raise ValueError(
            f"a budget of {target:,} parameters gives {solution.total:,} on "
            f"{self.anatomy.model_type}, {abs(solution.total / target - 1):.1%} off, and 1% is "
            f"allowed where leftovers are carried between blocks: {_reason(self.solve(target))}; "
            f"{remedy}"
        )

    def _nearby(self, missed: Solution) -> Solution | None:
        """The solution of the nearest budget that can be met."""
        units = {cost.unit for each in missed.blocks for cost in each.costs.values() if cost.unit}
        # The total that was reached and the next ones, then every percent up and down.
        near = [missed.total, *sorted(missed.total + unit for unit in units)]
        solutions = [s for s in map(self.nearest, filter(None, near)) if s.within]
        if solutions:
            return min(solutions, key=lambda each: abs(each.total - missed.target))
        factors = chain.from_iterable((1.01**k, 1.01**-k) for k in range(1, SEARCH_STEPS))
        targets = dict.fromkeys(round(missed.target * factor) for factor in factors)
        nearby = (self.nearest(target) for target in targets if target)
        return next((each for each in nearby if each.within), None)


def fill(solution: Solution) -> Solution:
    """Carry what is left of the blocks' shares to other blocks.

    Each method of a block gets at most one step more, so that sizes differ by one between blocks
    of a group. The blocks with the largest remainder come first (of equal ones the earlier), each
    with its cheapest step; then come the most expensive steps that still fit. Where the smallest
    sizes of some blocks exceed their shares, others get one step less in the same way. What a block
    with BitFit alone does not need is not carried: it is no remainder of rounding.
    """
    sizes = [dict(each.sizes) for each in solution.blocks]
    left = sum(each.share - each.total for each in solution.blocks if not each.under_budget)
    reduced = set()
    for i, letter, unit in _steps(solution.blocks, -1) if left < 0 else ():
        if left < 0 and sizes[i][letter] > 1:
            sizes[i][letter] -= 1
            left += unit
            reduced.add((i, letter))
    for i, letter, unit in _steps(solution.blocks, 1):
        if unit <= left and (i, letter) not in reduced:
            sizes[i][letter] += 1
            left -= unit
    blocks = tuple(replace(b, sizes=each) for b, each in zip(solution.blocks, sizes, strict=True))
    return replace(solution, blocks=blocks, filled=True)


def _one_more(filled: Solution) -> Iterator[Solution]:
    """``filled`` with one step more, the cheapest first, if it is not above its target."""
    if filled.total > filled.target:
        return
    blocks = filled.blocks
    for i, letter, _ in sorted(_steps(blocks, 1), key=lambda step: step[2]):
        more = replace(blocks[i], sizes={**blocks[i].sizes, letter: blocks[i].sizes[letter] + 1})
        yield replace(filled, blocks=(*blocks[:i], more, *blocks[i + 1 :]))


def _steps(blocks: Sequence[Allotment], sign: int) -> Iterator[tuple[int, str, int]]:
    """Index, letter and cost of each method's next step, in the order of :func:`fill`."""
    order = sorted(range(len(blocks)), key=lambda i: sign * (blocks[i].total - blocks[i].share))
    steps = [
        sorted((cost.unit, letter) for letter, cost in blocks[i].costs.items() if cost.unit)
        for i in order
    ]
    yield from ((i, each[0][1], each[0][0]) for i, each in zip(order, steps, strict=True) if each)
    others = [(unit, i, k) for i, each in zip(order, steps, strict=True) for unit, k in each[1:]]
    yield from ((i, k, unit) for unit, i, k in sorted(others, key=lambda other: -other[0]))


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
    """Why a solution misses its target, for the block that misses its share most."""
    sign = 1 if solution.total > solution.target else -1
    worst = max(solution.blocks, key=lambda each: sign * (each.total - each.share))
    names = " and ".join(STRATEGIES[letter] for letter in worst.costs)
    if worst.under_budget:
        return (
            f"{worst.block} has only {names}, with {worst.total:,} parameters at any budget, and "
            f"its share is {worst.share:,}"
        )
    if worst.total > worst.share:
        return (
            f"{worst.block} with {names} takes at least {worst.minimum:,}, and its share is "
            f"{worst.share:,}"
        )
    step = min(cost.unit for cost in worst.costs.values() if cost.unit)
    return (
        f"sizes are whole numbers, and one step in {worst.block} with {names} costs at least "
        f"{step:,}, but only {worst.share - worst.total:,} of its {worst.share:,} are left"
    )
