"""Greedy search: computes from the outcomes so far which jobs are needed next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from lightning_pelt.plans.design_space import Design
from lightning_pelt.search.final_comparison import FinalComparison
from lightning_pelt.search.queue.job import Job, Outcomes
from lightning_pelt.search.search_state import SearchState, StageRecord
from lightning_pelt.search.selection.base import Score, Selection
from lightning_pelt.search.selection.confirmation import Confirmation
from lightning_pelt.search.space import START, Space, Stage

SWAPS = "swaps"
AS_FOUND = "as found"
FRESH = 1_000_000  # first block of the fresh ones; each stage has a range of this size


@dataclass
class GreedySearch:
    """Greedy search, stage by stage (Chen et al., 2023).

    The outcomes are the only state: :meth:`replay` starts from the beginning each time and goes as
    far as the outcomes allow. An interrupted search continues by being replayed.

    Args:
        space: the search space.
        tasks: names of the tasks; the score of a design is the mean over them.
        select: makes the selection of a stage from its options, simplest first.
        baseline: makes the selection of the first stage, S0, whose only option is random designs.
        compare: makes the final comparison from the found design.
        fresh: number of fresh blocks on which a winner is compared with its runner-up, and the
            found design with its variants.
        alpha: level of the tests on fresh blocks.

    Example::

        search = GreedySearch(space, ["sst2"], select=Race, baseline=Baseline, compare=compare)
        outcomes = {}
        while not (state := search.replay(outcomes)).finished:
            outcomes |= {job.key: run(job) for job in state.wanted}
    """

    space: Space
    tasks: Sequence[str]
    select: Callable[[Sequence[str]], Selection]
    baseline: Callable[[Sequence[str]], Selection]
    compare: Callable[[Design], FinalComparison]
    fresh: int = 8
    alpha: float = 0.05
    # Caches; a replay without them gives the same result.
    _designs: dict[tuple[str, tuple[str, ...], int], dict[str, Design]] = field(
        default_factory=dict, init=False, repr=False
    )
    _jobs: dict[tuple[str, tuple[str, ...], int, str], list[Job]] = field(
        default_factory=dict, init=False, repr=False
    )
    _plans: dict[str, tuple[Mapping[str, object], int]] = field(
        default_factory=dict, init=False, repr=False
    )
    _stages: dict[tuple[str, ...], Stage | None] = field(
        default_factory=dict, init=False, repr=False
    )

    def replay(self, outcomes: Outcomes) -> SearchState:
        """The state of the search after ``outcomes``.

        Args:
            outcomes: by the key of the job.

        Raises:
            ValueError: no design of a stage can meet the budget.
        """
        state = SearchState()
        steps = enumerate([*self.space.stages, SWAPS])
        if not all(self._settle(state, name, number, outcomes) for number, name in steps):
            return state
        state.found = self.space.design(state.settled)
        state.comparison = self.compare(state.found)
        state.wanted = [job for job in state.comparison.jobs if job.key not in outcomes]
        return state

    def _settle(self, state: SearchState, name: str, number: int, outcomes: Outcomes) -> bool:
        """Settle a stage. False if it needs more outcomes."""
        stage = self._swaps(state) if name == SWAPS else self._stage(name, state.settled)
        if stage is None:
            return True
        first_fresh = FRESH * (number + 1)
        if name == SWAPS:
            selection: Selection = self._confirmation(stage.options, first_fresh)
        else:
            selection = (self.baseline if name == START else self.select)(stage.options)
        record = StageRecord(stage, selection)
        state.records.append(record)
        if not self._feed(selection, state, outcomes):
            return False
        winner, runner_up = selection.result().winner, selection.result().runner_up
        if runner_up is not None and name != SWAPS:
            record.confirmation = self._confirmation((winner, runner_up), first_fresh)
            if not self._feed(record.confirmation, state, outcomes):
                return False
            winner = record.confirmation.result().winner
        record.chosen = winner
        if name == SWAPS:
            state.settled |= _swap(winner)
        elif name != START:
            state.settled[name] = winner
        return True

    def _feed(self, selection: Selection, state: SearchState, outcomes: Outcomes) -> bool:
        """Tell a selection the scores in the outcomes. False if it needs more of them."""
        while wanted := selection.wanted():
            for arm, block in wanted:
                jobs = self._jobs_of(state, arm, block)
                if missing := [job for job in jobs if job.key not in outcomes]:
                    state.wanted += missing
                else:
                    selection.tell(arm, block, _mean([outcomes[j.key].score for j in jobs]))
            if state.wanted:
                # Two options may resolve to the same plan; the job then has the first one's label.
                jobs_of = state.records[-1].jobs
                state.wanted = [jobs_of[key] for key in dict.fromkeys(j.key for j in state.wanted)]
                return False
        return True

    def _jobs_of(self, state: SearchState, arm: str, block: int) -> list[Job]:
        """The jobs of an option in a block, one per task; they are added to the stage's record."""
        record = state.records[-1]
        stage = record.stage
        key = (stage.name, (*state.settled.values(), *stage.options), block)
        if key not in self._designs:
            if stage.name == SWAPS:
                made = {o: self.space.design({**state.settled, **_swap(o)}) for o in stage.options}
                self._designs[key] = made
            else:
                self._designs[key] = self.space.designs(stage, state.settled, block)
        if (arm_key := (*key, arm)) not in self._jobs:
            plan, parameters = self._plan(self._designs[key][arm])
            seed, label = self.space.block_seed(block), f"{stage.name}: {arm}, block {block}"
            self._jobs[arm_key] = [
                Job(plan, task, seed, "holdout", parameters=parameters, label=label)
                for task in self.tasks
            ]
        jobs = self._jobs[arm_key]
        for job in jobs:
            if job.key not in record.jobs:
                record.jobs[job.key] = job
                record.reused += any(job.key in earlier.jobs for earlier in state.records[:-1])
        return jobs

    def _plan(self, design: Design) -> tuple[Mapping[str, object], int]:
        """The configuration of a design's resolved plan, and its number of parameters."""
        name = repr(design)
        if name not in self._plans:
            solution = design.solution(self.space.anatomy)
            self._plans[name] = solution.plan().to_config(), solution.total
        return self._plans[name]

    def _stage(self, name: str, settled: Mapping[str, str]) -> Stage | None:
        key = (name, *settled.values())
        if key not in self._stages:
            self._stages[key] = self.space.stage(name, settled)
        return self._stages[key]

    def _swaps(self, state: SearchState) -> Stage | None:
        """The found design and its variants, each with the runner-up of one stage.

        Each greedy choice was made before the later ones were known, so it is tested again.
        """
        options, left_out = [AS_FOUND], {}
        for record in state.records[1:]:
            result = record.selection.result()
            others = [arm for arm in (result.winner, result.runner_up) if arm != record.chosen]
            for other in filter(None, others):
                option = f"{record.stage.name}: {other}"
                reason = self._misfit({**state.settled, **_swap(option)})
                if reason is None:
                    options.append(option)
                else:
                    left_out[option] = reason
        return Stage(SWAPS, tuple(options), left_out) if len(options) > 1 else None

    def _misfit(self, components: Mapping[str, str]) -> str | None:
        """The reason why a variant has no design that meets the budget; None if it has one."""
        for name in self.space.tuned_groups(components):
            if name not in components:
                return f"{name} was never settled"
        return self.space.misfit(self.space.design(components))

    def _confirmation(self, arms: Sequence[str], start: int) -> Confirmation:
        return Confirmation(arms[0], arms[1:], blocks=self.fresh, alpha=self.alpha, start=start)


def _swap(option: str) -> dict[str, str]:
    """The component that a variant such as ``"grouping: spindle"`` replaces."""
    name, colon, value = option.partition(": ")
    return {name: value} if colon else {}


def _mean(scores: Sequence[Score]) -> Score:
    """The mean over tasks; None if one of them diverged."""
    known = [score for score in scores if score is not None]
    return fmean(known) if len(known) == len(scores) else None
