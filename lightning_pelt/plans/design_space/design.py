"""Designs: plans of groups of blocks under one budget, whose sizes depend on the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.methods.config import to_plain
from lightning_pelt.methods.gate import Gate
from lightning_pelt.plans.design_space.allocation import Allocation, Over, block_proportions
from lightning_pelt.plans.design_space.budget import Sizing
from lightning_pelt.plans.design_space.patterns import Pattern, Stacks, layout
from lightning_pelt.plans.design_space.solution import Solution
from lightning_pelt.plans.design_space.strategies import STRATEGIES, template
from lightning_pelt.plans.plan import Group, Placed, Plan
from lightning_pelt.utils.errors import unknown


class Design(Plan):
    """A point of the design space of Chen et al., 2023 (https://arxiv.org/abs/2301.01821).

    The configuration holds the design. Ranks, bottlenecks, prefix lengths and the blocks of each
    group depend on the model, and are computed when the plan is attached.

    Args:
        strategies: for each group the letters of its methods: A (adapter), P (prefix), B (BitFit),
            L (LoRA). A group with an empty string is not tuned.
        budget: below 1 a share of the backbone's parameters, from 1 on a number of parameters. The
            head and gates do not count.
        pattern: how many blocks each group has: ``increasing``, ``uniform``, ``decreasing``,
            ``spindle`` or ``bottleneck``.
        allocation: how the budget is divided: ``increasing``, ``uniform`` or ``decreasing``.
        over: whether shares change from block to block or from group to group.
        stacks: ``concat`` groups the blocks of an encoder-decoder as one sequence, ``per_stack``
            each stack separately.
        gate: of every method; None, as in the paper, leaves them ungated.

    Attributes:
        groups: the methods of each group, without sizes and blocks. :meth:`resolved` sets them.

    Raises:
        ValueError: an unknown name, an unknown or repeated letter, no method, or a budget that is
            not a number of parameters.

    Example:
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_bert
        >>> design = Design(["AL", "P"], budget=2_200)
        >>> adapter, lora, prefix = design.resolved(examine(tiny_bert())).methods
        >>> adapter.bottleneck, lora.r, prefix.length
        (4, 4, 17)
    """

    def __init__(
        self,
        strategies: Sequence[str],
        budget: float = 0.005,
        pattern: Pattern = "spindle",
        allocation: Allocation = "uniform",
        over: Over = "blocks",
        stacks: Stacks = "concat",
        gate: Gate | None = None,
    ) -> None:
        self.strategies = _check_strategies(strategies)
        self.budget = _check_budget(budget)
        self.pattern, self.stacks = pattern, stacks
        self.allocation, self.over = allocation, over
        self.gate = gate
        # Refuse unknown names now, with one block for each group, instead of on the model.
        trial = layout(pattern, {"": len(self.strategies)}, len(self.strategies), stacks=stacks)
        block_proportions(trial, allocation, over=over, stacks=stacks)
        methods = [[template(letter, gate=gate) for letter in group] for group in self.strategies]
        super().__init__([Group(each) for each in methods], norms=False)

    def target(self, anatomy: Anatomy) -> int:
        """The budget as a number of parameters of a model.

        Raises:
            ValueError: the budget is a share, and the size of the backbone is unknown.
        """
        if self.budget >= 1:
            return int(self.budget)
        parameters: int = anatomy.parameters
        if not parameters:
            raise ValueError(
                f"budget={self.budget} is a share of the backbone, but the size of the backbone is "
                "unknown: give a number of parameters"
            )
        return max(1, round(self.budget * parameters))

    def sizing(self, anatomy: Anatomy) -> Sizing:
        """The design's groups, strategies and allocation on a model.

        Raises:
            ValueError: the model has too few blocks, or cannot take a prefix.
        """
        self._refuse_prefix(anatomy)
        depths = {stack.name: len(stack.blocks) for stack in anatomy.stacks}
        return Sizing(
            anatomy,
            layout(self.pattern, depths, len(self.strategies), stacks=self.stacks),
            self.strategies,
            allocation=self.allocation,
            over=self.over,
            stacks=self.stacks,
        )

    def nearest(self, anatomy: Anatomy) -> Solution:
        """The sizes on a model, even if their total is not near enough to the budget.

        Raises:
            ValueError: the model has too few blocks, or cannot take one of the methods.
        """
        return self.sizing(anatomy).nearest(self.target(anatomy))

    def solution(self, anatomy: Anatomy) -> Solution:
        """The sizes on a model.

        They are within 5% of the budget, or within 1% if what is left of the blocks' shares had to
        be carried from block to block.

        Raises:
            ValueError: as :meth:`nearest`, or there are no such sizes.
        """
        return self.sizing(anatomy).solve_within(self.target(anatomy))

    def resolved(self, anatomy: Anatomy) -> Plan:
        """The plan with the sizes and blocks of a model.

        Raises:
            ValueError: as :meth:`solution`.
        """
        return self.solution(anatomy).plan(self.gate)

    def place(self, anatomy: Anatomy) -> list[Placed]:
        """The sites of each method of the resolved plan.

        Raises:
            ValueError: as :meth:`solution`.
        """
        return self.resolved(anatomy).place(anatomy)

    def init_args(self) -> dict[str, Any]:
        """The arguments of the constructor as plain data."""
        names = ("strategies", "budget", "pattern", "allocation", "over", "stacks", "gate")
        return {name: to_plain(getattr(self, name)) for name in names}

    def __repr__(self) -> str:
        arguments = self.init_args() | {"gate": self.gate}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"

    def _refuse_prefix(self, anatomy: Anatomy) -> None:
        groups = [str(i) for i, group in enumerate(self.strategies, 1) if "P" in group]
        if not groups or anatomy.on_interface:
            return
        rest = [group.replace("P", "") for group in self.strategies]
        arguments = {**Design.init_args(self), "strategies": rest, "gate": self.gate}
        instead = f"use {Design(**arguments)!r}" if any(rest) else "use A, B or L instead"
        raise ValueError(
            f"{type(self).__name__} has a prefix in group {', '.join(groups)}, and "
            f"{anatomy.model_type} cannot take one: its attention does not use transformers' "
            f"attention interface. Leave it out: {instead}"
        )


class S4(Design):
    """The S4-model, found on T5-base: a spindle of (A,L), (A,P), (A,P,B), (P,B,L), with equal
    numbers of parameters per block (Chen et al., 2023; https://arxiv.org/abs/2301.01821).

    Args:
        budget: below 1 a share of the backbone's parameters, from 1 on a number of parameters.
        stacks: ``concat`` groups the blocks of an encoder-decoder as one sequence, ``per_stack``
            each stack separately.
        gate: of every method; None, as in the paper, leaves them ungated.

    Example:
        >>> S4(budget=20_000).strategies
        ('AL', 'AP', 'APB', 'PBL')
    """

    assignment: ClassVar[tuple[str, ...]] = ("AL", "AP", "APB", "PBL")

    def __init__(
        self, budget: float = 0.005, stacks: Stacks = "concat", gate: Gate | None = None
    ) -> None:
        super().__init__(self.assignment, budget, stacks=stacks, gate=gate)

    def init_args(self) -> dict[str, Any]:
        """The arguments of the constructor as plain data."""
        return {"budget": self.budget, "stacks": self.stacks, "gate": to_plain(self.gate)}


class S4_3b(S4):
    """The S4-3b-model, found on T5-3b: a spindle of (P,L), (A,L), (P,B,L), (A,P,B), with equal
    numbers of parameters per block (Chen et al., 2023; https://arxiv.org/abs/2301.01821).

    The arguments are those of :class:`S4`. The assignment is quoted from memory and has not been
    compared with the paper.

    Example:
        >>> S4_3b(budget=20_000).strategies
        ('PL', 'AL', 'PBL', 'APB')
    """

    assignment: ClassVar[tuple[str, ...]] = ("PL", "AL", "PBL", "APB")


def _check_strategies(strategies: Sequence[str]) -> tuple[str, ...]:
    if isinstance(strategies, str):
        raise ValueError(
            f"strategies={strategies!r} is one string: give a list with the letters of each group, "
            f"[{strategies!r}, ...]"
        )
    for group in strategies:
        for letter in group:
            if letter not in STRATEGIES:
                raise unknown("strategy", letter, STRATEGIES)
        if len(set(group)) < len(group):
            raise ValueError(f"the group {group!r} has a method twice: write each letter once")
    if not any(strategies):
        raise ValueError("no group has a method: give at least one of them letters of A, P, B, L")
    # One order, so that equal designs have equal configurations.
    return tuple("".join(k for k in STRATEGIES if k in group) for group in strategies)


def _check_budget(budget: float) -> float:
    is_number = isinstance(budget, int | float) and not isinstance(budget, bool)
    if not is_number or not 0 < budget < float("inf") or (budget >= 1 and budget != int(budget)):
        raise ValueError(
            f"budget={budget!r} is not a number of parameters: give a share of the backbone "
            "between 0 and 1, such as 0.005, or a whole number"
        )
    return budget if budget < 1 else int(budget)
