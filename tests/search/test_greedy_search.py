"""Greedy search on simulated scores: the jobs it wants, settles and does not repeat."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import simulated
from simulated import TASKS, noise

from lightning_pelt.plans.design_space import Design
from lightning_pelt.search.final_comparison import FinalComparison
from lightning_pelt.search.greedy_search import FRESH, GreedySearch
from lightning_pelt.search.queue.job import Job, Outcome
from lightning_pelt.search.search_state import SearchState
from lightning_pelt.search.selection.baseline import Baseline
from lightning_pelt.search.selection.brute_force import BruteForce
from lightning_pelt.search.selection.racing import Race
from lightning_pelt.search.selection.rules import Racing
from lightning_pelt.search.space import Space

SUBSETS = ("L", "AL", "AP")
TARGET = ("AL", "AP", "APB", "PBL")


def short(**arguments: Any) -> GreedySearch:
    """Few sets of methods and few seeds."""
    return simulated.make_search(**{"subsets": SUBSETS, "seeds": (0,), **arguments})


@cache
def shared() -> GreedySearch:
    """One search for many tests; its caches do not change the results."""
    return short()


def option(job: Job) -> tuple[str, str, int]:
    """Stage, option and block of a job's label."""
    stage, _, rest = job.label.partition(": ")
    name, _, block = rest.rpartition(", block ")
    return stage, name, int(block)


def record(state: SearchState, name: str) -> Any:
    return next(each for each in state.records if each.stage.name == name)


def told(score: Callable[[str, str, int], float | None]) -> Callable[[Job], float | None]:
    """Scores by stage, option and block plus the block's difficulty; constant on dev rows."""

    def scored(job: Job) -> float | None:
        if job.scored_on == "dev":
            return 70.0
        gain = score(*option(job))
        return None if gain is None else 70 + gain + 4 * noise(job.seed) + 0.3 * noise(job.key)

    return scored


@dataclass
class Known(GreedySearch):
    """Records the design of each plan, so that scores can depend on the design."""

    designs: dict[str, Design] = field(default_factory=dict)

    def _plan(self, design: Design) -> tuple[Mapping[str, object], int]:
        plan, total = super()._plan(design)
        self.designs.setdefault(json.dumps(plan), design)
        return plan, total


@pytest.mark.slow
def test_a_whole_search_finds_the_design_that_the_scores_favour() -> None:
    """Scores are a sum over the design's components and independent of the stage."""
    plain = simulated.make_search(seeds=(0,))
    search = Known(plain.space, TASKS, plain.select, plain.baseline, plain.compare)

    def score(job: Job) -> float:
        if job.scored_on == "dev":
            return 70.0
        design = search.designs[json.dumps(job.plan)]
        gain = {"bottleneck": 3.0, "increasing": -2.0}.get(design.pattern, 0.0)
        gain += {"increasing": -2.5, "decreasing": -2.0}.get(design.allocation, 0.0)
        gain += 2.0 * sum(map(bool, design.strategies))
        gain += sum(2.5 for a, b in zip(design.strategies, TARGET, strict=False) if a == b)
        return 60 + gain + 4 * noise(job.seed) + 0.5 * noise(job.key)

    state, _ = simulated.play(search, score)
    assert state.found is not None and state.finished
    assert (state.found.pattern, state.found.allocation) == ("bottleneck", "uniform")
    assert state.found.strategies == TARGET
    assert [*state.settled] == [name for name in search.space.stages if name != "start"]
    assert record(state, "swaps").chosen == "as found"


@cache
def finished() -> tuple[SearchState, dict[str, Outcome]]:
    """A finished search; all outcomes of a step arrive at once."""
    return simulated.play(shared())


def same(one: SearchState, other: SearchState) -> bool:
    def seen(state: SearchState) -> list[object]:
        return [
            (r.stage, r.chosen, r.selection.result(), r.selection.looks, [*r.jobs], r.reused)
            for r in state.records
        ]

    return (
        repr(seen(one)) == repr(seen(other))  # as text, where nan equals nan
        and one.settled == other.settled
        and repr(one.found) == repr(other.found)
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_in_which_outcomes_arrive_changes_nothing(seed: int) -> None:
    reference, every = finished()
    random, search, outcomes = np.random.default_rng(seed), short(), dict[str, Outcome]()
    state = search.replay(outcomes)
    while not state.finished:
        size = int(random.integers(1, len(state.wanted) + 1))
        for i in random.permutation(len(state.wanted))[:size]:
            job = state.wanted[i]
            assert job.key not in outcomes
            outcomes[job.key] = Outcome(every[job.key].score, every[job.key].seconds)
        state = search.replay(outcomes)
    assert outcomes == every
    assert same(state, reference)


@pytest.mark.slow
def test_a_step_wants_each_job_once_and_no_finished_one() -> None:
    search, outcomes = shared(), dict[str, Outcome]()
    while not (state := search.replay(outcomes)).finished:
        keys = [job.key for job in state.wanted]
        assert keys and len(set(keys)) == len(keys)
        assert not outcomes.keys() & set(keys)
        half = state.wanted[: (len(keys) + 1) // 2]
        outcomes |= {job.key: Outcome(simulated.score(job)) for job in half}
    assert outcomes.keys() == finished()[1].keys()


@pytest.mark.slow
def test_an_interrupted_search_wants_what_it_wanted_before() -> None:
    _, every = finished()
    search, new = shared(), short()  # the second one is replayed backwards
    counts = range(0, len(every), 97)
    wanted = {}
    for count in counts:
        outcomes = {key: every[key] for key in [*every][:count]}
        before, again = search.replay(outcomes), search.replay(outcomes)
        assert before.wanted == again.wanted
        wanted[count] = [job.to_json() for job in before.wanted]
    assert all(wanted.values())
    for count in reversed(counts):
        outcomes = {key: every[key] for key in [*every][:count]}
        assert [job.to_json() for job in new.replay(outcomes).wanted] == wanted[count]


@pytest.mark.slow
def test_outcomes_of_other_jobs_are_ignored() -> None:
    _, every = finished()
    other = {"no-job-of-this-search": Outcome(99.0)}
    assert same(shared().replay(every | other), finished()[0])


@pytest.mark.slow
def test_jobs_of_earlier_stages_are_reused() -> None:
    state, outcomes = finished()
    assert state.comparison is not None
    before = set[str]()
    for each in state.records:
        assert each.reused == len(before & each.jobs.keys())
        before |= each.jobs.keys()
    assert sum(each.reused for each in state.records) > 10
    assert outcomes.keys() == before | {job.key for job in state.comparison.jobs}
    # Each key is one (plan, task, seed), so a reused job is the same fit.
    fits = {(json.dumps(c.plan), c.task, c.seed) for r in state.records for c in r.jobs.values()}
    assert len(fits) == len(before)


@pytest.mark.slow
def test_all_options_of_a_race_have_the_same_blocks() -> None:
    state, _ = finished()
    for each in state.records[1:-1]:
        seeds: dict[str, set[int]] = {}
        for job in each.jobs.values():
            _, name, block = option(job)
            if block < 8:
                seeds.setdefault(name, set()).add(job.seed)
        # Two options can resolve to one plan in a block; its job has the label of one.
        assert set.union(*seeds.values()) == set(map(shared().space.block_seed, range(8)))
        counted = Counter(seed for found in seeds.values() for seed in found)
        assert max(counted.values()) == len(each.stage.options)


@pytest.mark.slow
def test_fresh_blocks_are_used_by_one_stage_and_by_no_race() -> None:
    state, _ = finished()
    raced, fresh = set[int](), dict[str, set[int]]()
    for each in state.records:
        for job in each.jobs.values():
            stage, _, block = option(job)
            if block < FRESH:
                raced.add(job.seed)
            else:
                fresh.setdefault(stage, set()).add(job.seed)
    assert "swaps" in fresh and "grouping" in fresh and "start" not in fresh
    assert all(len(seeds) == 8 for seeds in fresh.values())
    assert len(set.union(raced, *fresh.values())) == len(raced) + 8 * len(fresh)


@pytest.mark.parametrize(("gain", "chosen"), [(5.0, "increasing"), (-5.0, "bottleneck")])
@pytest.mark.slow
def test_a_runner_up_replaces_the_winner_only_if_it_is_better_on_fresh_blocks(
    gain: float, chosen: str
) -> None:
    def score(stage: str, name: str, block: int) -> float:
        if stage == "grouping" and block >= FRESH:
            return gain if name == "increasing" else 0.0
        return {"bottleneck": 8.0, "increasing": 4.0}.get(name, 0.0)

    state, _ = simulated.play(shared(), told(score), until="allocation")
    found = record(state, "grouping")
    assert (found.selection.result().winner, found.selection.result().runner_up) == (
        "bottleneck",
        "increasing",
    )
    assert found.chosen == state.settled["grouping"] == chosen


@pytest.mark.parametrize(("gain", "swapped"), [(6.0, True), (0.0, False), (-6.0, False)])
@pytest.mark.slow
def test_a_swap_replaces_a_component_only_if_it_is_clearly_better(
    gain: float, swapped: bool
) -> None:
    stage = "group 2"

    def score(name: str, each: str, block: int) -> float:
        return gain * each.startswith(f"{stage}: ") if name == "swaps" else GAINS.get(each, 0.0)

    GAINS = {"bottleneck": 4.0, "1+2+3+4": 4.0, "AL": 4.0}
    state, _ = simulated.play(shared(), told(score))
    swaps, race = record(state, "swaps"), record(state, stage)
    runner_up = race.selection.result().runner_up
    assert race.chosen == "AL" and runner_up != "AL"
    assert f"{stage}: {runner_up}" in swaps.stage.options
    assert swaps.stage.options[0] == "as found"
    assert swaps.chosen == (f"{stage}: {runner_up}" if swapped else "as found")
    assert state.found is not None and state.comparison is not None
    expected = ("AL", runner_up if swapped else "AL", "AL", "AL")
    assert state.settled[stage] == expected[1]
    assert state.found.strategies == state.comparison.candidates[0].design.strategies == expected


@pytest.mark.slow
def test_variants_with_a_group_that_was_never_settled_are_left_out() -> None:
    def score(_: str, each: str, __: int) -> float:
        return {"1+2+3": 4.0, "1+2+3+4": 2.0}.get(each, 0.0)

    state, _ = simulated.play(shared(), told(score))
    assert state.settled["groups"] == "1+2+3" and "group 4" not in state.settled
    left_out = record(state, "swaps").stage.left_out
    assert left_out == {"groups: 1+2+3+4": "group 4 was never settled"}
    assert state.found is not None and state.found.strategies[3] == ""


@pytest.mark.slow
def test_diverged_jobs_are_counted_and_not_averaged() -> None:
    """One task of one arm diverges on every third block, which then has no score for the arm."""

    def score(job: Job) -> float | None:
        if job.scored_on == "dev":
            return 70.0
        stage, name, block = option(job)
        wrong = (stage, name, job.task) == ("group 1", "AP", "tone") and block % 3 == 0
        return None if wrong else simulated.score(job)

    state, outcomes = simulated.play(shared(), score, until="group 2")
    found = record(state, "group 1")
    scores: dict[int, list[float | None]] = {}
    for job in found.jobs.values():
        _, name, block = option(job)
        if name == "AP" and block < FRESH:
            scores.setdefault(block, []).append(outcomes[job.key].score)
    assert len(scores) >= 8 and all(len(each) == len(TASKS) for each in scores.values())
    whole = [fmean(filter(None, each)) for each in scores.values() if None not in each]
    result = found.selection.result()
    assert result.diverged == {"L": 0, "AL": 0, "AP": len(scores) - len(whole)}
    assert result.diverged["AP"] >= 2
    assert result.means["AP"] == pytest.approx(fmean(whole))


def test_an_arm_that_mostly_diverges_is_eliminated_and_a_search_fails_if_all_do() -> None:
    def score(stage: str, name: str, _: int) -> float | None:
        return None if stage == "grouping" and name == "bottleneck" else 0.0

    state, _ = simulated.play(shared(), told(score), until="allocation")
    assert record(state, "grouping").selection.result().eliminated["bottleneck"] == 8
    with pytest.raises(RuntimeError, match="every arm diverged"):
        simulated.play(shared(), told(lambda stage, *_: None if stage == "grouping" else 0.0))


def test_a_block_waits_for_all_of_its_tasks() -> None:
    search, outcomes = shared(), dict[str, Outcome]()
    state = search.replay(outcomes)
    assert Counter(job.task for job in state.wanted) == {"topics": 6, "tone": 6}
    outcomes |= {c.key: Outcome(70.0) for c in state.wanted if c.task == "topics"}
    waiting = search.replay(outcomes)
    assert waiting.wanted == [job for job in state.wanted if job.task == "tone"]
    assert [each.stage.name for each in waiting.records] == ["start"]


@pytest.mark.slow
def test_the_score_of_a_block_is_the_mean_over_tasks() -> None:
    state, outcomes = finished()
    start = state.records[0]
    by_task = [
        fmean(outcomes[key].score or 0.0 for key, c in start.jobs.items() if c.task == task)
        for task in TASKS
    ]
    assert start.selection.result().means["anything"] == pytest.approx(fmean(by_task))


@pytest.mark.slow
def test_brute_force_fits_a_number_of_unpaired_designs_for_each_option() -> None:
    plain = shared()
    search = GreedySearch(
        plain.space, TASKS, partial(BruteForce, designs=5), plain.baseline, plain.compare
    )
    state, _ = simulated.play(search, until="allocation")
    found = record(state, "grouping")
    jobs = [job for job in found.jobs.values() if option(job)[2] < FRESH]
    assert len(jobs) == 4 * 5 * len(TASKS)
    seeds = {
        name: {job.seed for job in jobs if option(job)[1] == name} for name in found.stage.options
    }
    assert all(len(each) == 5 for each in seeds.values())
    assert len(set.union(*seeds.values())) == 4 * 5  # no block has two options


def test_a_single_option_is_settled_without_a_fit() -> None:
    plain = shared()
    space = Space(plain.space.anatomy, simulated.BUDGET, subsets=SUBSETS, patterns=["spindle"])
    search = GreedySearch(space, TASKS, plain.select, plain.baseline, plain.compare)
    state, _ = simulated.play(search, until="allocation")
    assert state.settled["grouping"] == "spindle" and not record(state, "grouping").jobs


@pytest.mark.slow
def test_the_dev_rows_are_used_only_by_the_final_comparison() -> None:
    state, _ = finished()
    assert state.comparison is not None
    assert {job.scored_on for each in state.records for job in each.jobs.values()} == {"holdout"}
    assert {job.scored_on for job in state.comparison.jobs} == {"dev"}
    search, outcomes = shared(), dict[str, Outcome]()
    while not (state := search.replay(outcomes)).finished:
        assert len({job.scored_on for job in state.wanted}) == 1
        assert (state.wanted[0].scored_on == "dev") == (state.found is not None)
        outcomes |= {c.key: Outcome(simulated.score(c)) for c in state.wanted}


def test_the_final_comparison_has_all_plans_tasks_and_seeds_at_one_budget() -> None:
    found = Design(TARGET, simulated.BUDGET, "bottleneck")
    comparison = FinalComparison(
        found, simulated.anatomy(), 10_000, TASKS, (3, 5, 7), ("L", "A", "P", "B", "S4")
    )
    assert [each.name for each in comparison.candidates] == ["found", "L", "A", "P", "B", "S4"]
    assert len({job.key for job in comparison.jobs}) == len(comparison.jobs) == 6 * 2 * 3
    assert {job.seed for job in comparison.jobs[:12]} == {3}  # one seed after the other
    for each in comparison.candidates:
        assert each.target == 10_000
        assert {(c.task, c.seed) for jobs in each.jobs.values() for c in jobs} == {
            (task, seed) for task in TASKS for seed in (3, 5, 7)
        }
        short_of = each.parameters < 0.95 * each.target
        assert short_of == (each.name == "B") and each.parameters <= 1.05 * each.target
    bitfit = comparison.candidates[4]
    assert bitfit.parameters == 6 * (4 * 32 + 64 + 32)
    assert {c.parameters for jobs in bitfit.jobs.values() for c in jobs} == {bitfit.parameters}


def test_the_found_design_keeps_its_components_at_the_final_budget() -> None:
    found = Design(TARGET, simulated.BUDGET, "bottleneck", "increasing", "groups")
    design = FinalComparison(found, simulated.anatomy(), 10_000, TASKS, (0,)).candidates[0].design
    assert design.init_args() == {**found.init_args(), "budget": 10_000}


def test_an_unknown_reference_design_is_refused() -> None:
    comparison = FinalComparison(Design(["L"]), simulated.anatomy(), 10_000, TASKS, (0,), ("S5",))
    with pytest.raises(ValueError, match=r"unknown plan to compare with 'S5': did you mean 'S4'"):
        _ = comparison.candidates


def test_a_baseline_has_one_arm_and_at_least_one_block() -> None:
    with pytest.raises(ValueError, match="one arm and 1 block"):
        Baseline(["a", "b"])
    with pytest.raises(ValueError, match="one arm and 1 block"):
        Baseline(["a"], 0)
    baseline = Baseline(["a"], 3)
    for block, score in enumerate([60.0, None, 70.0]):
        assert not baseline.finished
        baseline.tell("a", block, score)
    result = baseline.result()
    assert (result.verdict, result.means["a"], result.diverged["a"]) == ("only", 65.0, 1)


@pytest.mark.slow
def test_a_budget_that_no_design_meets_is_refused_before_any_fit() -> None:
    plain = shared()
    search = GreedySearch(
        Space(plain.space.anatomy, 10),
        TASKS,
        partial(Race, rules=Racing()),
        plain.baseline,
        plain.compare,
    )
    with pytest.raises(ValueError, match="budget=10"):
        search.replay({})


def test_a_found_design_must_fill_the_budget_and_a_reference_need_not() -> None:
    """BitFit fills a small part of the budget: valid as a reference, not as the found design."""
    comparison = FinalComparison(Design(["L"]), simulated.anatomy(), 10_000, TASKS, (0,), ("B",))
    assert [contestant.name for contestant in comparison.candidates] == ["found", "B"]
    with pytest.raises(ValueError, match="budget"):
        _ = FinalComparison(Design(["B"]), simulated.anatomy(), 10_000, TASKS, (0,), ()).candidates
