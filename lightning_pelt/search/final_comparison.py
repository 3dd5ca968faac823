"""Final comparison: the found design and reference designs of one budget, on the dev rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.plans.design_space import Design
from lightning_pelt.search.queue.job import Job, Outcomes
from lightning_pelt.search.reference_designs import reference_design

FOUND = "found"


@dataclass(frozen=True)
class Candidate:
    """A plan of the final comparison.

    Attributes:
        name: ``found``, or the name of the reference design.
        design: the design at the final budget, or at the one that it reaches if it cannot fill it.
        parameters: number of parameters that it trains, without the head; below the budget if the
            design cannot fill it.
        target: the budget as a number of parameters.
        jobs: by task, one per seed.
    """

    name: str
    design: Design
    parameters: int
    target: int
    jobs: dict[str, tuple[Job, ...]]

    def scores(self, task: str, outcomes: Outcomes) -> list[float | None]:
        """Scores in points by seed; None where a fit diverged or is not finished."""
        found = (outcomes.get(job.key) for job in self.jobs[task])
        return [None if outcome is None else outcome.score for outcome in found]


@dataclass(frozen=True)
class FinalComparison:
    """Fits on all training rows, scored on the dev split, which is not used before.

    Args:
        found: the design that the search found, at any budget.
        anatomy: of the model.
        budget: of every candidate.
        tasks: names of the tasks.
        seeds: of the fits, the same for all candidates.
        compare: letters of methods that go into every block, and ``S4``.

    Raises:
        ValueError: a name in ``compare`` is unknown, the model cannot take a candidate, or the
            found design has no sizes within 5% of the budget.
    """

    found: Design
    anatomy: Anatomy
    budget: float
    tasks: Sequence[str]
    seeds: Sequence[int]
    compare: Sequence[str] = ("L", "A", "P", "B")

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """The found design, then the reference designs."""
        arguments = {**Design.init_args(self.found), "budget": self.budget}
        arguments["gate"] = self.found.gate
        designs = {FOUND: Design(**arguments)}
        designs |= {name: reference_design(name, self.budget) for name in self.compare}
        return tuple(self._candidate(name, design) for name, design in designs.items())

    @property
    def jobs(self) -> list[Job]:
        """Jobs of all candidates. All jobs of a seed precede those of the next seed."""
        every = (
            candidate.jobs[task][i]
            for i in range(len(self.seeds))
            for candidate in self.candidates
            for task in self.tasks
        )
        return [*{job.key: job for job in every}.values()]

    def _candidate(self, name: str, design: Design) -> Candidate:
        # BitFit alone cannot fill most budgets, so reference designs may stay below theirs.
        solve = design.solution if name == FOUND else design.nearest
        solution = solve(self.anatomy)
        plan = solution.plan(design.gate).to_config()
        jobs = {
            task: tuple(
                Job(
                    plan,
                    task,
                    seed,
                    "dev",
                    parameters=solution.total,
                    label=f"final: {name}, seed {seed}",
                )
                for seed in self.seeds
            )
            for task in self.tasks
        }
        if not solution.within:
            design = Design(**{**Design.init_args(design), "budget": solution.total})
        return Candidate(name, design, solution.total, solution.target, jobs)
