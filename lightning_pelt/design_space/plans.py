"""Plans by design: methods for groups of blocks and one budget, sized once the model is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.design_space.budget import Allocation, Over, Sizing, Solution, weights
from lightning_pelt.design_space.costs import STRATEGIES, template
from lightning_pelt.design_space.patterns import Pattern, Stacks, layout
from lightning_pelt.errors import unknown
from lightning_pelt.gate import Gate
from lightning_pelt.method import Method
from lightning_pelt.plan import Group, Plan, _plain


class Design(Plan):
    """A point of the design space of Chen et al., 2023 (https://arxiv.org/abs/2301.01821).

    Ranks, bottlenecks, prefix lengths and the groups' blocks depend on the model, so they are only
    settled when the plan meets one; what is written down is the design.

    Args:
        strategies: for each group the letters of its methods: A (adapter), P (prefix), B (BitFit),
            L (LoRA). An empty string leaves a group untuned.
        budget: below 1 a share of the backbone's parameters, from 1 on a number of them. Neither
            the head nor gates count.
        pattern: how many blocks each group holds: ``increasing``, ``uniform``, ``decreasing``,
            ``spindle`` or ``bottleneck``.
        allocation: how the budget is shared: ``increasing``, ``uniform`` or ``decreasing``.
        over: whether shares change from block to block or from group to group.
        stacks: ``concat`` groups the blocks of an encoder-decoder as one sequence, ``per_stack``
            each stack by itself.
        gate: of every method; None, as in the paper, is ungated.

    Attributes:
        groups: the methods of each group with sizes and blocks still to be set; they are set in
            :meth:`resolved`.

    Raises:
        ValueError: an unknown name, an unknown or repeated letter, no method at all, or a budget
            that is no number of parameters.
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
        # Refuses unknown names before there is a model: as if it had one block for each group.
        trial = layout(pattern, {"": len(self.strategies)}, len(self.strategies), stacks)
        weights(trial, allocation, over=over, stacks=stacks)
        letters = [[template(letter, gate=gate) for letter in group] for group in self.strategies]
        super().__init__([Group(methods) for methods in letters], norms=False)

    def sizing(self, anatomy: Anatomy) -> Sizing:
        """The question of sizes that this design is on a model.

        Raises:
            ValueError: the model has too few blocks, or cannot take a prefix.
        """
        self._refuse_prefix(anatomy)
        depths = {stack.name: len(stack.blocks) for stack in anatomy.stacks}
        return Sizing(
            anatomy,
            layout(self.pattern, depths, len(self.strategies), self.stacks),
            self.strategies,
            allocation=self.allocation,
            over=self.over,
            stacks=self.stacks,
        )

    def nearest(self, anatomy: Anatomy) -> Solution:
        """What every block gets on a model, be the total within 5% of the budget or not.

        Raises:
            ValueError: the model has too few blocks or cannot take one of the methods.
        """
        return self.sizing(anatomy).solve(self.target(anatomy))

    def solution(self, anatomy: Anatomy) -> Solution:
        """What every block gets on a model.

        Raises:
            ValueError: as :meth:`nearest`, or no sizes come within 5% of the budget.
        """
        return self.sizing(anatomy).solve_within(self.target(anatomy))

    def resolved(self, anatomy: Anatomy) -> Plan:
        """The plan of concrete methods in concrete blocks that this one is on a model.

        Raises:
            ValueError: as :meth:`solution`.
        """
        return self.solution(anatomy).plan(self.gate)

    def place(self, anatomy: Anatomy) -> list[tuple[int, Method, list[Site]]]:
        return self.resolved(anatomy).place(anatomy)

    def init_args(self) -> dict[str, Any]:
        names = ("strategies", "budget", "pattern", "allocation", "over", "stacks", "gate")
        return {name: _plain(getattr(self, name)) for name in names}

    def __repr__(self) -> str:
        arguments = self.init_args() | {"gate": self.gate}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"

    def target(self, anatomy: Anatomy) -> int:
        """The budget as a number of parameters of a model.

        Raises:
            ValueError: it is a share, and the size of the backbone is not known.
        """
        if self.budget >= 1:
            return int(self.budget)
        parameters: int = anatomy.parameters
        if not parameters:
            raise ValueError(
                f"budget={self.budget} is a share of the backbone, and how large that is is not "
                "known here: give a number of parameters"
            )
        return max(1, round(self.budget * parameters))

    def _refuse_prefix(self, anatomy: Anatomy) -> None:
        groups = [str(i) for i, group in enumerate(self.strategies, 1) if "P" in group]
        if not groups or anatomy.on_interface:
            return
        rest = [group.replace("P", "") for group in self.strategies]
        alike = {**Design.init_args(self), "strategies": rest, "gate": self.gate}
        instead = f"use {Design(**alike)!r}" if any(rest) else "use A, B or L in its place"
        raise ValueError(
            f"{type(self).__name__} has a prefix in group {', '.join(groups)}, and "
            f"{anatomy.model_type} cannot take one: its attention does not use transformers' "
            f"attention interface. Leave it out: {instead}"
        )


class S4(Design):
    """The S4-model, found on T5-base: a spindle of (A,L), (A,P), (A,P,B), (P,B,L), the parameters
    shared equally among blocks (Chen et al., 2023; https://arxiv.org/abs/2301.01821).

    Args:
        budget: below 1 a share of the backbone's parameters, from 1 on a number of them.
        stacks: ``concat`` groups the blocks of an encoder-decoder as one sequence, ``per_stack``
            each stack by itself.
        gate: of every method; None, as in the paper, is ungated.
    """

    found: ClassVar[tuple[str, ...]] = ("AL", "AP", "APB", "PBL")

    def __init__(
        self, budget: float = 0.005, stacks: Stacks = "concat", gate: Gate | None = None
    ) -> None:
        super().__init__(self.found, budget, stacks=stacks, gate=gate)

    def init_args(self) -> dict[str, Any]:
        return {"budget": self.budget, "stacks": self.stacks, "gate": _plain(self.gate)}


class S4_3b(S4):
    """The S4-3b-model, found on T5-3b: a spindle of (P,L), (A,L), (P,B,L), (A,P,B), the parameters
    shared equally among blocks (Chen et al., 2023; https://arxiv.org/abs/2301.01821).

    The paper's assignment is known from recollection alone. Its arguments are those of
    :class:`S4`.
    """

    found: ClassVar[tuple[str, ...]] = ("PL", "AL", "PBL", "APB")


def _check_strategies(strategies: Sequence[str]) -> tuple[str, ...]:
    if isinstance(strategies, str):
        raise ValueError(
            f"strategies={strategies!r} is one text: give a list with the letters of each group, "
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
    # One order, so that one design has one configuration.
    return tuple("".join(k for k in STRATEGIES if k in group) for group in strategies)


def _check_budget(budget: float) -> float:
    if not 0 < budget < float("inf") or (budget >= 1 and budget != int(budget)):
        raise ValueError(
            f"budget={budget} is no number of parameters: give a share of the backbone between 0 "
            "and 1, such as 0.005, or a whole number"
        )
    return budget if budget < 1 else int(budget)
