"""The numbers of a search report: costs, comparable scores, and the final comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean

import numpy as np
from scipy import stats

from lightning_pelt.plans.design_space.strategies import STRATEGIES
from lightning_pelt.search.final_comparison import FOUND, FinalComparison
from lightning_pelt.search.greedy_search import SWAPS
from lightning_pelt.search.queue.job import Outcome, Outcomes
from lightning_pelt.search.search_state import SearchState
from lightning_pelt.search.selection.base import Look, Selection

PAPER = 100  # designs for each option in the paper's protocol
FINAL, GATED = "final comparison", "gated run"
TOLERANCE = 0.05  # of the budget; plans that miss it by more are marked


@dataclass(frozen=True)
class StageCost:
    """Cost of a stage.

    Attributes:
        stage: its name.
        fits: number of fits done for it.
        reused: number of fits that an earlier stage had done.
        seconds: total duration of its fits over all workers.
        diverged: number of its fits that diverged.
        paper_fits: fits of the paper's protocol for the same choice; 0 if the paper has none.
        paper_seconds: their duration at the mean duration of this search's fits.
    """

    stage: str
    fits: int
    reused: int
    seconds: float
    diverged: int
    paper_fits: int = 0
    paper_seconds: float = 0.0


def stage_costs(state: SearchState, outcomes: Outcomes, tasks: int) -> list[StageCost]:
    """Costs of every stage so far and of the final comparison.

    Args:
        state: of the search.
        outcomes: by the key of the job.
        tasks: number of tasks; a design is one fit on each.
    """
    seen: set[str] = set()
    own: list[list[Outcome]] = []
    for record in state.records:
        own.append([outcomes[k] for k in record.jobs if k in outcomes and k not in seen])
        seen |= record.jobs.keys()
    every = [outcome.seconds for stage in own for outcome in stage]
    mean = fmean(every) if every else 0.0
    found = []
    for record, done in zip(state.records, own, strict=True):
        paper = 0 if record.stage.name == SWAPS else PAPER * len(record.stage.options) * tasks
        found.append(
            _cost(
                record.stage.name,
                done,
                reused=record.reused,
                paper_fits=paper,
                paper_seconds=paper * mean,
            )
        )
    for name, jobs in (
        (GATED, state.gated_jobs),
        (FINAL, state.comparison.jobs if state.comparison else []),
    ):
        if jobs:
            found.append(_cost(name, [outcomes[job.key] for job in jobs if job.key in outcomes]))
    return found


def _cost(
    stage: str,
    done: Sequence[Outcome],
    *,
    reused: int = 0,
    paper_fits: int = 0,
    paper_seconds: float = 0.0,
) -> StageCost:
    own = sum(outcome.seconds for outcome in done)
    diverged = sum(outcome.diverged for outcome in done)
    return StageCost(stage, len(done), reused, own, diverged, paper_fits, paper_seconds)


def eliminated_after(looks: Sequence[Look]) -> dict[str, int]:
    """The number of blocks after which each eliminated arm was eliminated."""
    found: dict[str, int] = {}
    for look in looks:
        for arm in look.arms:
            if not arm.active:
                found.setdefault(arm.arm, look.blocks)
    return found


def comparable_scores(selection: Selection) -> dict[str, tuple[float, float, float]]:
    """Score and interval of each arm, in points: the leader's mean minus the lead over the arm.

    Plain means cannot be compared: an arm that was eliminated early has other blocks than the
    leader. The interval is that of the difference, so the leader has none. NaN is unknown.
    """
    arms = selection.stats()
    # The leader is the arm whose difference to the leader is exactly 0. A single arm has none.
    leader = next((arm for arm in arms if arm.behind == 0 and arm.low == arm.high), None)
    if leader is None:
        return {arm.arm: (arm.mean, nan, nan) for arm in arms}
    mean = leader.mean
    return {a.arm: (mean - a.behind, mean - a.high, mean - a.low) for a in arms}


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, standard deviation and number of values; NaN where unknown."""

    mean: float
    low: float
    high: float
    sd: float
    count: int


def estimate(values: Sequence[float | None], level: float = 0.95) -> Estimate:
    """Mean, standard deviation and t interval of the mean; None is left out.

    Args:
        values: independent measurements.
        level: of the two-sided interval.
    """
    known = [value for value in values if value is not None]
    count = len(known)
    if count < 2:
        return Estimate(known[0] if known else nan, nan, nan, nan, count)
    mean, sd, error = fmean(known), float(np.std(known, ddof=1)), float(stats.sem(known))
    low, high = stats.t.interval(level, count - 1, mean, error) if error else (mean, mean)
    return Estimate(mean, float(low), float(high), sd, count)


@dataclass(frozen=True)
class CandidateScores:
    """A plan of the final comparison with its scores.

    Attributes:
        name: in the comparison.
        title: for people.
        parameters: number of parameters that it trains, without the head.
        target: the budget as a number of parameters.
        scores: by task, one per seed, in points; None where a fit diverged or is not finished.
    """

    name: str
    title: str
    parameters: int
    target: int
    scores: Mapping[str, Sequence[float | None]]

    @property
    def mark(self) -> str:
        """``under budget`` or ``over budget`` if it misses the budget by more than 5%."""
        share = self.parameters / self.target
        return "" if abs(share - 1) <= TOLERANCE else f"{'under' if share < 1 else 'over'} budget"

    @property
    def overall(self) -> list[float | None]:
        """The mean over tasks for each seed; None where a task has no score."""
        rows = zip(*self.scores.values(), strict=True)
        return [fmean(r) if None not in r else None for r in rows]


def candidate_scores(comparison: FinalComparison, outcomes: Outcomes) -> list[CandidateScores]:
    """The plans of the final comparison with their scores so far, the found design first."""
    return [
        CandidateScores(
            each.name,
            plan_title(each.name),
            each.parameters,
            each.target,
            {task: each.scores(task, outcomes) for task in comparison.tasks},
        )
        for each in comparison.candidates
    ]


def plan_title(name: str) -> str:
    """The title of a plan of the comparison: ``"AL"`` is adapter + LoRA in every block."""
    if name == FOUND:
        return "found design"
    if all(letter in STRATEGIES for letter in name):
        return " + ".join(STRATEGIES[letter] for letter in name)
    return name


def best_plan(plans: Sequence[CandidateScores]) -> CandidateScores | None:
    """The plan with the best mean over tasks; None if no plan has one yet."""
    known = [plan for plan in plans if isfinite(estimate(plan.overall).mean)]
    return max(known, key=lambda plan: estimate(plan.overall).mean, default=None)


def plan_place(plan: CandidateScores) -> str:
    """A plan within a sentence: ``the found design``, ``LoRA in every block``."""
    if plan.name == FOUND:
        return f"the {plan.title}"
    return f"{plan.title} in every block" if plan.title in STRATEGIES.values() else plan.title


def rank_table(plans: Sequence[CandidateScores]) -> dict[str, dict[str, float]]:
    """Ranks by task and plan name, best first; their means over tasks are under ``""``.

    Equal scores share the mean of their ranks; the rank of a NaN is NaN.
    """
    names = [plan.name for plan in plans]
    table: dict[str, dict[str, float]] = {}
    for task in plans[0].scores if plans else ():
        means = np.array([estimate(plan.scores[task]).mean for plan in plans])
        ranks = stats.rankdata(-means, nan_policy="omit")
        table[task] = dict(zip(names, map(float, ranks), strict=True))
    means_over_tasks = {name: fmean(row[name] for row in table.values()) for name in names}
    return {**table, "": means_over_tasks}


def difference(plan: CandidateScores, other: CandidateScores) -> Estimate:
    """``plan`` minus ``other``: mean over tasks, paired by seed."""
    pairs = zip(plan.overall, other.overall, strict=True)
    return estimate([a - b for a, b in pairs if a is not None and b is not None])
