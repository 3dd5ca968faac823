"""The numbers of a search's report: its cost, where options stand, how plans compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import fmean, stdev

from scipy.special import stdtrit

from lightning_pelt.design_space.costs import STRATEGIES
from lightning_pelt.search.cell import Outcome
from lightning_pelt.search.contest import Contest, Look
from lightning_pelt.search.course import SWAPS, Walk
from lightning_pelt.search.finals import FOUND, Finals

Outcomes = Mapping[str, Outcome]
PAPER = 100  # designs for each option in the paper's protocol
FINAL, GATED = "final comparison", "gated run"
MISS = 0.05  # of the budget; a plan that is further off is marked


@dataclass(frozen=True)
class Spent:
    """What a stage cost.

    Attributes:
        stage: its name.
        cells: fits that it did.
        reused: fits that an earlier stage had done already.
        seconds: that its own fits took, all workers together.
        diverged: of its own fits.
        paper_cells: fits of the paper's protocol for the same question; 0 where it asks none.
        paper_seconds: what those would have taken at this search's mean per fit.
    """

    stage: str
    cells: int
    reused: int
    seconds: float
    diverged: int
    paper_cells: int = 0
    paper_seconds: float = 0.0


def spent(walk: Walk, outcomes: Outcomes, tasks: int) -> list[Spent]:
    """What every stage so far and the final comparison cost.

    Args:
        walk: how far the search has come.
        outcomes: by the key of their cell.
        tasks: number of tasks; a design is one fit on each.
    """
    seen: set[str] = set()
    own: list[list[Outcome]] = []
    for record in walk.records:
        own.append([outcomes[k] for k in record.cells if k in outcomes and k not in seen])
        seen |= record.cells.keys()
    every = [outcome.seconds for stage in own for outcome in stage]
    each = fmean(every) if every else 0.0
    found = []
    for record, done in zip(walk.records, own, strict=True):
        paper = 0 if record.stage.name == SWAPS else PAPER * len(record.stage.options) * tasks
        found.append(_spent(record.stage.name, done, record.reused, paper, paper * each))
    last = [] if walk.finals is None else [cell.key for cell in walk.finals.cells]
    if walk.gated:
        gated = [cell.key for cell in walk.gated]
        found.append(_spent(GATED, [outcomes[key] for key in gated if key in outcomes]))
    if walk.finals is not None:
        found.append(_spent(FINAL, [outcomes[key] for key in last if key in outcomes]))
    return found


def _spent(
    stage: str, done: Sequence[Outcome], reused: int = 0, paper: int = 0, seconds: float = 0.0
) -> Spent:
    took = sum(outcome.seconds for outcome in done)
    diverged = sum(outcome.diverged for outcome in done)
    return Spent(stage, len(done), reused, took, diverged, paper, seconds)


def first_drops(looks: Sequence[Look]) -> dict[str, int]:
    """After how many blocks an arm was dropped, by arm; those still in are left out."""
    found: dict[str, int] = {}
    for look in looks:
        for standing in look.standings:
            if not standing.alive:
                found.setdefault(standing.arm, look.blocks)
    return found


def levelled(contest: Contest) -> dict[str, float]:
    """Scores that can be compared: the leader's mean, less how far behind it an arm was.

    Means alone cannot: an arm that was dropped early has seen other blocks than the leader.
    """
    standings = contest.standings()
    # An arm that is measured against itself is the leader; without a rival there is none.
    leader = next((s for s in standings if s.behind == 0 and s.low == s.high), None)
    if leader is None:
        return {s.arm: s.mean for s in standings}
    return {s.arm: leader.mean - s.behind for s in standings}


@dataclass(frozen=True)
class Estimate:
    """A mean, its interval or spread, and the number behind it; nan where it is not known."""

    mean: float
    low: float
    high: float
    sd: float
    count: int


def estimate(values: Sequence[float | None], level: float = 0.95) -> Estimate:
    """Mean, standard deviation and the t interval of the mean; None is left out.

    Args:
        values: independent measurements.
        level: of the two-sided interval.
    """
    known = [value for value in values if value is not None]
    if not known:
        return Estimate(nan, nan, nan, nan, 0)
    mean, count = fmean(known), len(known)
    if count < 2:
        return Estimate(mean, nan, nan, nan, count)
    sd = stdev(known)
    half = float(stdtrit(count - 1, (1 + level) / 2)) * sd / sqrt(count)
    return Estimate(mean, mean - half, mean + half, sd, count)


@dataclass(frozen=True)
class Scored:
    """A plan of the final comparison with its scores.

    Attributes:
        name: in the comparison.
        title: for people.
        parameters: that it trains, without the head.
        target: the budget as a number.
        scores: by task, one for each seed, in points; None where a fit diverged or is not done.
    """

    name: str
    title: str
    parameters: int
    target: int
    scores: Mapping[str, Sequence[float | None]]

    @property
    def mark(self) -> str:
        """``under budget`` or ``over budget`` where it misses the budget by more than 5%."""
        share = self.parameters / self.target
        return "" if abs(share - 1) <= MISS else f"{'under' if share < 1 else 'over'} budget"

    @property
    def overall(self) -> list[float | None]:
        """The mean over tasks, for each seed; None where a task has no score."""
        rows = zip(*self.scores.values(), strict=True)
        return [fmean(r) if None not in r else None for r in rows]


def compared(finals: Finals, outcomes: Outcomes) -> list[Scored]:
    """The plans of the final comparison with what is known of them, the found one first."""
    return [
        Scored(
            c.name,
            title_of(c.name),
            c.parameters,
            c.target,
            {task: c.scores(task, outcomes) for task in finals.tasks},
        )
        for c in finals.contestants
    ]


def title_of(name: str) -> str:
    """What people call a plan of the comparison: ``"AL"`` is adapter + LoRA in every block."""
    if name == FOUND:
        return "found design"
    if all(letter in STRATEGIES for letter in name):
        return " + ".join(STRATEGIES[letter] for letter in name)
    return name


def ranks(scores: Mapping[str, float]) -> dict[str, float]:
    """Rank by score, the best first; equal ones share the mean of their places, nan has none."""
    known = [score for score in scores.values() if score == score]
    return {
        name: nan
        if score != score
        else 1 + sum(s > score for s in known) + (sum(s == score for s in known) - 1) / 2
        for name, score in scores.items()
    }


def rank_table(plans: Sequence[Scored]) -> dict[str, dict[str, float]]:
    """Ranks by task, and under ``""`` their mean over tasks, by name of the plan."""
    by_task = {
        task: ranks({plan.name: estimate(plan.scores[task]).mean for plan in plans})
        for task in (plans[0].scores if plans else ())
    }
    means = {plan.name: fmean(by_task[task][plan.name] for task in by_task) for plan in plans}
    return {**by_task, "": means}


def paired(plan: Scored, rival: Scored) -> Estimate:
    """``plan`` minus ``rival``: of the mean over tasks, seed by seed."""
    pairs = zip(plan.overall, rival.overall, strict=True)
    return estimate([a - b for a, b in pairs if a is not None and b is not None])
