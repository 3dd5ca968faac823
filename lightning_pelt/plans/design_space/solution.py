"""Solutions: the size of every method in every block of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.methods.base import Cost
from lightning_pelt.methods.gate import Gate
from lightning_pelt.plans.design_space.patterns import Block
from lightning_pelt.plans.design_space.strategies import template
from lightning_pelt.plans.plan import Group, Plan

TOLERANCE = Fraction(5, 100)  # of sizes that fit each block's share
FILLED_TOLERANCE = Fraction(1, 100)  # of sizes for which leftovers were carried


@dataclass(frozen=True)
class Allotment:
    """The share, methods and sizes of one block.

    Attributes:
        block: the block.
        group: number of its group, from 0.
        share: the parameters that the allocation assigns to the block.
        costs: cost of each method by letter.
        sizes: rank, bottleneck or length by letter; 0 for BitFit.

    Example:
        >>> from lightning_pelt.methods.base import Cost
        >>> block = Allotment(Block("encoder", 0), 0, 600, {"L": Cost(0, 128)}, {"L": 4})
        >>> block.parameters, block.minimum
        ({'L': 512}, 128)
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
        """Number of parameters of all methods."""
        return sum(self.parameters.values())

    @property
    def minimum(self) -> int:
        """Number of parameters with every size at 1."""
        return sum(cost.of(1) for cost in self.costs.values())

    @property
    def under_budget(self) -> bool:
        """Whether the block has only BitFit, and that has fewer parameters than its share."""
        return not any(cost.unit for cost in self.costs.values()) and self.total < self.share


@dataclass(frozen=True)
class Solution:
    """Sizes of the methods in every tuned block of a model.

    Attributes:
        anatomy: of the model.
        target: the budget in parameters, without the head and gates.
        blocks: ordered by group, then in network order.
        filled: whether what was left of some blocks' shares was carried to others.

    Example:
        >>> from lightning_pelt import Design
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_bert
        >>> solution = Design(["AL", "L"], budget=2_200).solution(examine(tiny_bert()))
        >>> [dict(allotment.sizes) for allotment in solution.blocks]
        [{'A': 4, 'L': 4}, {'L': 8}]
        >>> solution.total, solution.within
        (2120, True)
    """

    anatomy: Anatomy
    target: int
    blocks: tuple[Allotment, ...]
    filled: bool = False

    @property
    def total(self) -> int:
        """Number of parameters with these sizes."""
        return sum(block.total for block in self.blocks)

    @property
    def within(self) -> bool:
        """Whether the total is within 5% of the target, or of 1% if leftovers were carried."""
        tolerance = FILLED_TOLERANCE if self.filled else TOLERANCE
        return abs(self.total - self.target) <= tolerance * self.target

    def plan(self, gate: Gate | None = None) -> Plan:
        """The plan with these sizes; blocks of a group with equal sizes form one group.

        Args:
            gate: of every method; None leaves them ungated.
        """
        numbers: dict[tuple[int, str, tuple[tuple[str, int], ...]], list[int]] = {}
        for each in self.blocks:
            key = (each.group, each.block.stack, tuple(each.sizes.items()))
            numbers.setdefault(key, []).append(each.block.number)
        return Plan(
            [
                Group([template(k, self.anatomy, gate).sized(v) for k, v in sizes], blocks, stack)
                for (_, stack, sizes), blocks in numbers.items()
            ],
            norms=False,
        )
