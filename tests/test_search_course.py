"""The walk of a search, on made-up scores: what it asks for, settles and does not repeat."""

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

from lightning_pelt.design_space import Design
from lightning_pelt.search.brute_force import BruteForce
from lightning_pelt.search.cell import Cell, Outcome
from lightning_pelt.search.course import FRESH, Course, Walk
from lightning_pelt.search.finals import Finals
from lightning_pelt.search.racing import Race, Racing
from lightning_pelt.search.sample import Sample
from lightning_pelt.search.space import Space

SUBSETS = ("L", "AL", "AP")
TARGET = ("AL", "AP", "APB", "PBL")


def short(**arguments: Any) -> Course:
    """Few sets of methods and few seeds."""
    return simulated.course(**{"subsets": SUBSETS, "seeds": (0,), **arguments})


@cache
def shared() -> Course:
    """One for many tests: what it remembers is no more than what it would find again."""
    return short()


def option(cell: Cell) -> tuple[str, str, int]:
    """Stage, option and block of a cell's label."""
    stage, _, rest = cell.label.partition(": ")
    name, _, block = rest.rpartition(", block ")
    return stage, name, int(block)


def record(walk: Walk, name: str) -> Any:
    return next(each for each in walk.records if each.stage.name == name)


def told(score: Callable[[str, str, int], float | None]) -> Callable[[Cell], float | None]:
    """Scores by stage, option and block, on top of a block's difficulty; the finals are equal."""

    def scored(cell: Cell) -> float | None:
        if cell.judge == "dev":
            return 70.0
        gain = score(*option(cell))
        return None if gain is None else 70 + gain + 4 * noise(cell.seed) + 0.3 * noise(cell.key)

    return scored


@dataclass
class Known(Course):
    """Remembers which design each plan came from, so that scores can follow the design."""

    designs: dict[str, Design] = field(default_factory=dict)

    def _plan(self, design: Design) -> tuple[Mapping[str, object], int]:
        plan, total = super()._plan(design)
        self.designs.setdefault(json.dumps(plan), design)
        return plan, total


@pytest.mark.slow
def test_a_whole_search_finds_the_design_that_the_scores_favour() -> None:
    """Scores are a sum over the design's components: no stage's name plays a part."""
    plain = simulated.course(seeds=(0,))
    course = Known(plain.space, TASKS, plain.contest, plain.baseline, plain.finals)

    def score(cell: Cell) -> float:
        if cell.judge == "dev":
            return 70.0
        design = course.designs[json.dumps(cell.plan)]
        gain = {"bottleneck": 3.0, "increasing": -2.0}.get(design.pattern, 0.0)
        gain += {"increasing": -2.5, "decreasing": -2.0}.get(design.allocation, 0.0)
        gain += 2.0 * sum(map(bool, design.strategies))
        gain += sum(2.5 for a, b in zip(design.strategies, TARGET, strict=False) if a == b)
        return 60 + gain + 4 * noise(cell.seed) + 0.5 * noise(cell.key)

    walk, _ = simulated.play(course, score)
    assert walk.found is not None and walk.over
    assert (walk.found.pattern, walk.found.allocation) == ("bottleneck", "uniform")
    assert walk.found.strategies == TARGET
    assert [*walk.settled] == [name for name in course.space.stages if name != "start"]
    assert record(walk, "swaps").chosen == "as found"


@cache
def finished() -> tuple[Walk, dict[str, Outcome]]:
    """A search whose outcomes came all at once."""
    return simulated.play(shared())


def same(one: Walk, other: Walk) -> bool:
    def seen(walk: Walk) -> list[object]:
        return [
            (r.stage, r.chosen, r.contest.result(), r.contest.looks, [*r.cells], r.reused)
            for r in walk.records
        ]

    return (
        repr(seen(one)) == repr(seen(other))  # as text, where nan equals nan
        and one.settled == other.settled
        and repr(one.found) == repr(other.found)
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_in_which_outcomes_arrive_changes_nothing(seed: int) -> None:
    reference, every = finished()
    random, course, outcomes = np.random.default_rng(seed), short(), dict[str, Outcome]()
    walk = course.walk(outcomes)
    while not walk.over:
        size = int(random.integers(1, len(walk.wanted) + 1))
        for i in random.permutation(len(walk.wanted))[:size]:
            cell = walk.wanted[i]
            assert cell.key not in outcomes
            outcomes[cell.key] = Outcome(every[cell.key].score, every[cell.key].seconds)
        walk = course.walk(outcomes)
    assert outcomes == every
    assert same(walk, reference)


def test_a_step_wants_each_cell_once_and_none_that_is_there() -> None:
    course, outcomes = shared(), dict[str, Outcome]()
    while not (walk := course.walk(outcomes)).over:
        keys = [cell.key for cell in walk.wanted]
        assert keys and len(set(keys)) == len(keys)
        assert not outcomes.keys() & set(keys)
        half = walk.wanted[: (len(keys) + 1) // 2]
        outcomes |= {cell.key: Outcome(simulated.score(cell)) for cell in half}
    assert outcomes.keys() == finished()[1].keys()


def test_an_interrupted_search_wants_what_it_wanted_before() -> None:
    _, every = finished()
    course, new = shared(), short()  # the other one is walked backwards
    counts = range(0, len(every), 97)
    wanted = {}
    for count in counts:
        outcomes = {key: every[key] for key in [*every][:count]}
        before, again = course.walk(outcomes), course.walk(outcomes)
        assert before.wanted == again.wanted
        wanted[count] = [cell.to_json() for cell in before.wanted]
    assert all(wanted.values())
    for count in reversed(counts):
        outcomes = {key: every[key] for key in [*every][:count]}
        assert [cell.to_json() for cell in new.walk(outcomes).wanted] == wanted[count]


def test_outcomes_of_other_cells_play_no_part() -> None:
    _, every = finished()
    other = {"no-cell-of-this-search": Outcome(99.0)}
    assert same(shared().walk(every | other), finished()[0])


def test_cells_of_earlier_stages_are_used_again() -> None:
    walk, outcomes = finished()
    assert walk.finals is not None
    before = set[str]()
    for each in walk.records:
        assert each.reused == len(before & each.cells.keys())
        before |= each.cells.keys()
    assert sum(each.reused for each in walk.records) > 10
    assert outcomes.keys() == before | {cell.key for cell in walk.finals.cells}
    # Each key is one (plan, task, seed): what is used again is the very same fit.
    fits = {(json.dumps(c.plan), c.task, c.seed) for r in walk.records for c in r.cells.values()}
    assert len(fits) == len(before)


def test_all_options_of_a_race_meet_on_the_same_blocks() -> None:
    walk, _ = finished()
    for each in walk.records[1:-1]:
        seeds: dict[str, set[int]] = {}
        for cell in each.cells.values():
            _, name, block = option(cell)
            if block < 8:
                seeds.setdefault(name, set()).add(cell.seed)
        # Two options can come to one plan in a block, which then bears one of their names.
        assert set.union(*seeds.values()) == set(map(shared().space.block_seed, range(8)))
        counted = Counter(seed for found in seeds.values() for seed in found)
        assert max(counted.values()) == len(each.stage.options)


def test_fresh_blocks_are_in_no_race_and_in_one_stage() -> None:
    walk, _ = finished()
    raced, fresh = set[int](), dict[str, set[int]]()
    for each in walk.records:
        for cell in each.cells.values():
            stage, _, block = option(cell)
            if block < FRESH:
                raced.add(cell.seed)
            else:
                fresh.setdefault(stage, set()).add(cell.seed)
    assert "swaps" in fresh and "grouping" in fresh and "start" not in fresh
    assert all(len(seeds) == 8 for seeds in fresh.values())
    assert len(set.union(raced, *fresh.values())) == len(raced) + 8 * len(fresh)


@pytest.mark.parametrize(("gain", "chosen"), [(5.0, "increasing"), (-5.0, "bottleneck")])
def test_a_runner_up_replaces_the_winner_only_if_it_is_better_on_fresh_blocks(
    gain: float, chosen: str
) -> None:
    def score(stage: str, name: str, block: int) -> float:
        if stage == "grouping" and block >= FRESH:
            return gain if name == "increasing" else 0.0
        return {"bottleneck": 8.0, "increasing": 4.0}.get(name, 0.0)

    walk, _ = simulated.play(shared(), told(score), until="allocation")
    found = record(walk, "grouping")
    assert (found.contest.result().winner, found.contest.result().runner_up) == (
        "bottleneck",
        "increasing",
    )
    assert found.chosen == walk.settled["grouping"] == chosen


@pytest.mark.parametrize(("gain", "swapped"), [(6.0, True), (0.0, False), (-6.0, False)])
def test_a_swap_replaces_a_component_only_if_it_is_clearly_better(
    gain: float, swapped: bool
) -> None:
    stage = "group 2"

    def score(name: str, each: str, block: int) -> float:
        return gain * each.startswith(f"{stage}: ") if name == "swaps" else GAINS.get(each, 0.0)

    GAINS = {"bottleneck": 4.0, "1+2+3+4": 4.0, "AL": 4.0}
    walk, _ = simulated.play(shared(), told(score))
    swaps, race = record(walk, "swaps"), record(walk, stage)
    rival = race.contest.result().runner_up
    assert race.chosen == "AL" and rival != "AL"
    assert f"{stage}: {rival}" in swaps.stage.options
    assert swaps.stage.options[0] == "as found"
    assert swaps.chosen == (f"{stage}: {rival}" if swapped else "as found")
    assert walk.found is not None and walk.finals is not None
    expected = ("AL", rival if swapped else "AL", "AL", "AL")
    assert walk.settled[stage] == expected[1]
    assert walk.found.strategies == walk.finals.contestants[0].design.strategies == expected


def test_variants_with_a_group_that_was_never_asked_about_are_left_out() -> None:
    def score(_: str, each: str, __: int) -> float:
        return {"1+2+3": 4.0, "1+2+3+4": 2.0}.get(each, 0.0)

    walk, _ = simulated.play(shared(), told(score))
    assert walk.settled["groups"] == "1+2+3" and "group 4" not in walk.settled
    left_out = record(walk, "swaps").stage.left_out
    assert left_out == {"groups: 1+2+3+4": "group 4 was never settled"}
    assert walk.found is not None and walk.found.strategies[3] == ""


def test_diverged_cells_are_counted_and_not_averaged_in() -> None:
    """One task of one arm diverges on every third block: those blocks have no score for it."""

    def score(cell: Cell) -> float | None:
        if cell.judge == "dev":
            return 70.0
        stage, name, block = option(cell)
        wrong = (stage, name, cell.task) == ("group 1", "AP", "tone") and block % 3 == 0
        return None if wrong else simulated.score(cell)

    walk, outcomes = simulated.play(shared(), score, until="group 2")
    found = record(walk, "group 1")
    scores: dict[int, list[float | None]] = {}
    for cell in found.cells.values():
        _, name, block = option(cell)
        if name == "AP" and block < FRESH:
            scores.setdefault(block, []).append(outcomes[cell.key].score)
    assert len(scores) >= 8 and all(len(each) == len(TASKS) for each in scores.values())
    whole = [fmean(filter(None, each)) for each in scores.values() if None not in each]
    result = found.contest.result()
    assert result.diverged == {"L": 0, "AL": 0, "AP": len(scores) - len(whole)}
    assert result.diverged["AP"] >= 2
    assert result.means["AP"] == pytest.approx(fmean(whole))


def test_an_arm_that_mostly_diverges_is_dropped_and_all_of_them_end_the_search() -> None:
    def score(stage: str, name: str, _: int) -> float | None:
        return None if stage == "grouping" and name == "bottleneck" else 0.0

    walk, _ = simulated.play(shared(), told(score), until="allocation")
    assert record(walk, "grouping").contest.result().eliminated["bottleneck"] == 8
    with pytest.raises(RuntimeError, match="every arm diverged"):
        simulated.play(shared(), told(lambda stage, *_: None if stage == "grouping" else 0.0))


def test_a_block_waits_for_all_of_its_tasks() -> None:
    course, outcomes = shared(), dict[str, Outcome]()
    walk = course.walk(outcomes)
    assert Counter(cell.task for cell in walk.wanted) == {"topics": 6, "tone": 6}
    outcomes |= {c.key: Outcome(70.0) for c in walk.wanted if c.task == "topics"}
    waiting = course.walk(outcomes)
    assert waiting.wanted == [cell for cell in walk.wanted if cell.task == "tone"]
    assert [each.stage.name for each in waiting.records] == ["start"]


def test_the_score_of_a_block_is_the_mean_over_tasks() -> None:
    walk, outcomes = finished()
    start = walk.records[0]
    by_task = [
        fmean(outcomes[key].score or 0.0 for key, c in start.cells.items() if c.task == task)
        for task in TASKS
    ]
    assert start.contest.result().means["anything"] == pytest.approx(fmean(by_task))


def test_brute_force_fits_a_number_of_unpaired_designs_for_each_option() -> None:
    plain = shared()
    course = Course(
        plain.space, TASKS, partial(BruteForce, designs=5), plain.baseline, plain.finals
    )
    walk, _ = simulated.play(course, until="allocation")
    found = record(walk, "grouping")
    cells = [cell for cell in found.cells.values() if option(cell)[2] < FRESH]
    assert len(cells) == 4 * 5 * len(TASKS)
    seeds = {
        name: {cell.seed for cell in cells if option(cell)[1] == name}
        for name in found.stage.options
    }
    assert all(len(each) == 5 for each in seeds.values())
    assert len(set.union(*seeds.values())) == 4 * 5  # no block has two options


def test_a_single_option_is_settled_without_a_fit() -> None:
    plain = shared()
    space = Space(plain.space.anatomy, simulated.BUDGET, subsets=SUBSETS, patterns=["spindle"])
    course = Course(space, TASKS, plain.contest, plain.baseline, plain.finals)
    walk, _ = simulated.play(course, until="allocation")
    assert walk.settled["grouping"] == "spindle" and not record(walk, "grouping").cells


def test_the_official_rows_are_touched_at_the_end_alone() -> None:
    walk, _ = finished()
    assert walk.finals is not None
    assert {cell.judge for each in walk.records for cell in each.cells.values()} == {"holdout"}
    assert {cell.judge for cell in walk.finals.cells} == {"dev"}
    course, outcomes = shared(), dict[str, Outcome]()
    while not (walk := course.walk(outcomes)).over:
        assert len({cell.judge for cell in walk.wanted}) == 1
        assert (walk.wanted[0].judge == "dev") == (walk.found is not None)
        outcomes |= {c.key: Outcome(simulated.score(c)) for c in walk.wanted}


def test_the_finals_are_plans_times_tasks_times_seeds_of_one_budget() -> None:
    found = Design(TARGET, simulated.BUDGET, "bottleneck")
    finals = Finals(
        found, simulated.anatomy(), 10_000, TASKS, (3, 5, 7), ("L", "A", "P", "B", "S4")
    )
    assert [each.name for each in finals.contestants] == ["found", "L", "A", "P", "B", "S4"]
    assert len({cell.key for cell in finals.cells}) == len(finals.cells) == 6 * 2 * 3
    assert {cell.seed for cell in finals.cells[:12]} == {3}  # each seed is whole before the next
    for each in finals.contestants:
        assert each.target == 10_000
        assert {(c.task, c.seed) for cells in each.cells.values() for c in cells} == {
            (task, seed) for task in TASKS for seed in (3, 5, 7)
        }
        short_of = each.parameters < 0.95 * each.target
        assert short_of == (each.name == "B") and each.parameters <= 1.05 * each.target
    bitfit = finals.contestants[4]
    assert bitfit.parameters == 6 * (4 * 32 + 64 + 32)
    assert {c.parameters for cells in bitfit.cells.values() for c in cells} == {bitfit.parameters}


def test_the_found_design_keeps_its_components_at_the_final_budget() -> None:
    found = Design(TARGET, simulated.BUDGET, "bottleneck", "increasing", "groups")
    design = Finals(found, simulated.anatomy(), 10_000, TASKS, (0,)).contestants[0].design
    assert design.init_args() == {**found.init_args(), "budget": 10_000}


def test_a_contestant_of_an_unknown_name_is_refused() -> None:
    finals = Finals(Design(["L"]), simulated.anatomy(), 10_000, TASKS, (0,), ("S5",))
    with pytest.raises(ValueError, match=r"unknown plan to compare with 'S5': did you mean 'S4'"):
        _ = finals.contestants


def test_a_sample_has_one_arm_and_at_least_one_block() -> None:
    with pytest.raises(ValueError, match="one arm and 1 block"):
        Sample(["a", "b"])
    with pytest.raises(ValueError, match="one arm and 1 block"):
        Sample(["a"], 0)
    sample = Sample(["a"], 3)
    for block, score in enumerate([60.0, None, 70.0]):
        assert not sample.over
        sample.tell("a", block, score)
    result = sample.result()
    assert (result.verdict, result.means["a"], result.diverged["a"]) == ("only", 65.0, 1)


def test_a_budget_that_no_design_meets_stops_the_walk_before_any_fit() -> None:
    plain = shared()
    course = Course(
        Space(plain.space.anatomy, 10),
        TASKS,
        partial(Race, rules=Racing()),
        plain.baseline,
        plain.finals,
    )
    with pytest.raises(ValueError, match="budget=10"):
        course.walk({})


def test_a_found_design_without_sizes_is_refused_and_a_rival_is_not() -> None:
    """BitFit fills a small part of the budget: as a rival it takes part, as the find it may not."""
    rival = Finals(Design(["L"]), simulated.anatomy(), 10_000, TASKS, (0,), ("B",))
    assert [contestant.name for contestant in rival.contestants] == ["found", "B"]
    with pytest.raises(ValueError, match="budget"):
        _ = Finals(Design(["B"]), simulated.anatomy(), 10_000, TASKS, (0,), ()).contestants
