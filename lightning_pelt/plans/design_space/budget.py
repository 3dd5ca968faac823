"""Budgets: from a number of parameters to ranks, bottlenecks and prefix lengths in each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.methods.base import Cost
from lightning_pelt.plans.design_space.allocation import block_proportions
from lightning_pelt.plans.design_space.patterns import Block
from lightning_pelt.plans.design_space.solution import Allotment, Solution
from lightning_pelt.plans.design_space.strategies import STRATEGIES, template

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
                costs = {letter: methods[letter].cost(here[letter]) for letter in letters}
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

    def solve_within(self, target: int) -> Solution:
        """Sizes within 5% of ``target`` parameters, without the head and gates.

        Raises:
            ValueError: no sizes are; the message gives the reason and the nearest budget that can
                be met.
        """
        solution = self.solve(target)
        if solution.within:
            return solution
        # The nearest target that its own solution meets, to the next percent.
        factors = chain.from_iterable((1.01**k, 1.01**-k) for k in range(1, SEARCH_STEPS))
        nearby = (self.solve(round(target * factor)) for factor in factors)
        found = next((s for s in nearby if s.total and s.within), None)
        remedy = (
            f"the nearest reachable total is {found.total:,}, with budget={found.target}"
            if found
            else "no budget can be met: change the methods of its groups"
        )
        raise ValueError(
            f"a budget of {target:,} parameters gives {solution.total:,} on "
            f"{self.anatomy.model_type}, {abs(solution.total / target - 1):.1%} off, and 5% is "
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
