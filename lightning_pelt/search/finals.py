"""The last comparison: the found design against others of the same budget, on official rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.design_space import S4, Design
from lightning_pelt.design_space.costs import STRATEGIES
from lightning_pelt.errors import unknown
from lightning_pelt.search.cell import Cell, Outcome

FOUND = "found"


@dataclass(frozen=True)
class Contestant:
    """A plan of the comparison.

    Attributes:
        name: ``found``, or what it is compared with.
        design: at the final budget.
        parameters: that it trains, without the head; less than the budget where it cannot fill it.
        target: the budget as a number.
        cells: by task, one for each seed.
    """

    name: str
    design: Design
    parameters: int
    target: int
    cells: Mapping[str, tuple[Cell, ...]]

    def scores(self, task: str, outcomes: Mapping[str, Outcome]) -> list[float | None]:
        """In points, in the order of the seeds; None where a fit diverged or is not done."""
        found = (outcomes.get(cell.key) for cell in self.cells[task])
        return [None if outcome is None else outcome.score for outcome in found]


@dataclass(frozen=True)
class Finals:
    """Fits on all training rows, scored on the official dev split, which nothing else touches.

    Args:
        found: the design that the search found, at any budget.
        anatomy: of the model.
        budget: of every contestant.
        tasks: names of the tasks.
        seeds: of the fits; the same for all contestants.
        compare: letters of the methods that are laid into every block alike, and ``S4``.

    Raises:
        ValueError: an unknown name in ``compare``, a contestant that the model cannot take, or a
            found design that comes to no sizes within 5% of the budget.
    """

    found: Design
    anatomy: Anatomy
    budget: float
    tasks: Sequence[str]
    seeds: Sequence[int]
    compare: Sequence[str] = ("L", "A", "P", "B")

    @cached_property
    def contestants(self) -> tuple[Contestant, ...]:
        """The found design first."""
        arguments = {**Design.init_args(self.found), "budget": self.budget}
        arguments["gate"] = self.found.gate
        designs = {FOUND: Design(**arguments)}
        designs |= {name: rival(name, self.budget) for name in self.compare}
        return tuple(self._contestant(name, design) for name, design in designs.items())

    @property
    def cells(self) -> list[Cell]:
        """Of all contestants; by seed first, so that an early look compares like with like."""
        every = [c.cells[task][i] for i in range(len(self.seeds)) for c in self.contestants
                 for task in self.tasks]  # fmt: skip
        return [*{cell.key: cell for cell in every}.values()]

    def _contestant(self, name: str, design: Design) -> Contestant:
        # BitFit alone cannot fill most budgets; a rival takes part with what it has.
        own = name == FOUND
        solution = design.solution(self.anatomy) if own else design.nearest(self.anatomy)
        plan = solution.plan(design.gate).to_config()
        cells = {
            task: tuple(
                Cell(plan, task, seed, "dev", solution.total, f"final: {name}, seed {seed}")
                for seed in self.seeds
            )
            for task in self.tasks
        }
        return Contestant(name, design, solution.total, solution.target, cells)


def rival(name: str, budget: float) -> Design:
    """The design that ``name`` of a comparison means: letters in every block alike, or ``S4``.

    Raises:
        ValueError: it means none.
    """
    if name == "S4":
        return S4(budget)
    for letter in name:
        if letter not in STRATEGIES:
            raise unknown("plan to compare with", name, [*STRATEGIES, "S4"])
    return Design([name], budget=budget, pattern="uniform")
