"""Search by gates: the methods kept and the jobs wanted, with simulated gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import simulated
from simulated import TASKS

from lightning_pelt.methods.gate import Gate
from lightning_pelt.plans import from_config
from lightning_pelt.plans.design_space import Design
from lightning_pelt.search.final_comparison import FinalComparison
from lightning_pelt.search.gate_search import GateSearch
from lightning_pelt.search.queue.job import Job, Outcome
from lightning_pelt.search.search_state import SearchState
from lightning_pelt.search.space import Space

BUDGET = simulated.BUDGET
BLOCKS = ((0,), (1, 2), (3, 4), (5,))  # four uniform groups of six blocks
NAMES = {"A": "adapter", "P": "prefix", "B": "bitfit", "L": "lora"}
Gates = Sequence[Mapping[str, float]]  # by letter, for each group
# Kept, at 0.5 or more: A and L; only P, at the threshold; L, the largest; all.
OPEN: Gates = (
    {"A": 0.6, "P": 0.4, "B": 0.3, "L": 0.9},
    {"A": 0.2, "P": 0.5, "B": 0.1, "L": 0.49},
    {"A": 0.2, "P": 0.1, "B": 0.3, "L": 0.4},
    {"A": 0.6, "P": 0.7, "B": 0.8, "L": 0.9},
)
KEPT = ("AL", "P", "L", "APBL")


def search(subsets: Sequence[str] | None = None, **arguments: Any) -> GateSearch:
    space = Space(simulated.anatomy(), BUDGET, subsets=subsets)
    return GateSearch(space, TASKS, compare, **arguments)


def compare(found: Design) -> FinalComparison:
    return FinalComparison(found, simulated.anatomy(), BUDGET, TASKS, (0, 1), ("L", "B"))


def metrics(gates: Gates, tilt: float = 0.0) -> dict[str, float]:
    """Metrics of a fit; with a tilt, the blocks of a group differ and have the same mean."""
    (stack,) = simulated.anatomy().stacks
    return {
        f"gate/{stack.name}.{block}/{NAMES[letter]}": value + tilt * (2 * i - len(blocks) + 1)
        for group, blocks in zip(gates, BLOCKS, strict=True)
        for i, block in enumerate(blocks)
        for letter, value in group.items()
    }


def read(search: GateSearch, *gates: Gates, tilt: float = 0.0) -> SearchState:
    """The state after the gated runs; one set of gates for all tasks, or one for each."""
    jobs = search.replay({}).wanted
    each = gates * len(jobs) if len(gates) == 1 else gates
    return search.replay(
        {
            job.key: Outcome(80.0, metrics=metrics(one, tilt))
            for job, one in zip(jobs, each, strict=True)
        }
    )


def kept(state: SearchState) -> tuple[str, ...]:
    return tuple(state.settled[f"group {i + 1}"] for i in range(4))


def tuned(job: Job) -> dict[int, set[str]]:
    """Methods by block of a job's plan."""
    found: dict[int, set[str]] = {}
    for group in from_config(dict(job.plan)).groups:
        for block in group.blocks or ():
            found.setdefault(block, set()).update(method.name for method in group.methods)
    return found


def test_one_gated_run_for_each_task_has_every_method_in_every_block() -> None:
    state = search().replay({})
    assert [job.task for job in state.wanted] == [*TASKS] and state.wanted == state.gated_jobs
    assert len({job.seed for job in state.wanted}) == 1
    for job in state.wanted:
        assert job.scored_on == "holdout"
        assert tuned(job) == {block: {*NAMES.values()} for block in range(6)}
        assert abs(job.parameters / BUDGET - 1) <= 0.05
        methods = [m for group in from_config(dict(job.plan)).groups for m in group.methods]
        assert all(method.gate == Gate() for method in methods)


def test_methods_that_no_subset_has_are_left_out() -> None:
    state = search(("AL", "LP")).replay({})
    assert tuned(state.wanted[0]) == {block: {"adapter", "lora", "prefix"} for block in range(6)}


def test_methods_with_open_gates_are_kept_and_at_least_the_most_open() -> None:
    state = read(search(), OPEN)
    assert kept(state) == KEPT
    assert state.found is not None and state.found.strategies == KEPT


def test_gates_are_averaged_over_the_blocks_of_a_group() -> None:
    # Single blocks are below or above the threshold; the means of the groups are the same.
    state = read(search(), OPEN, tilt=0.15)
    assert kept(state) == KEPT
    for group, readings in zip(OPEN, state.gate_means.values(), strict=True):
        assert readings == pytest.approx(group)


def test_gates_are_averaged_over_tasks() -> None:
    def flat(**gates: float) -> Gates:
        return [gates] * 4

    one, other = flat(A=0.6, P=0.9, B=0.1, L=0.2), flat(A=0.3, P=0.3, B=0.1, L=0.7)
    state = read(search(), one, other)
    assert state.gate_means["group 3"] == pytest.approx({"A": 0.45, "P": 0.6, "B": 0.1, "L": 0.45})
    assert kept(state) == ("P",) * 4


def test_the_threshold_is_an_argument() -> None:
    assert kept(read(search(keep=0.85), OPEN)) == ("L", "P", "L", "L")


def test_a_group_that_kept_bitfit_alone_gets_its_next_most_open_method() -> None:
    gates = [*OPEN[:2], {"A": 0.3, "P": 0.2, "B": 0.9, "L": 0.1}, OPEN[3]]
    state = read(search(), gates)
    assert kept(state) == ("AL", "P", "AB", "APBL")
    assert state.found is not None and state.found.strategies[2] == "AB"


def test_groups_that_kept_bitfit_alone_are_filled_until_the_budget_is_met() -> None:
    bitfit = {"A": 0.1, "P": 0.2, "B": 0.9, "L": 0.3}
    other = {"A": 0.1, "P": 0.4, "B": 0.9, "L": 0.3}
    assert kept(read(search(), [other, OPEN[1], OPEN[2], bitfit])) == ("PB", "P", "L", "BL")


def test_a_group_of_bitfit_alone_stays_where_the_budget_is_met() -> None:
    # The share of each of the six blocks is 224, the number of its biases.
    space = Space(simulated.anatomy(), 6 * 224)
    state = SearchState(
        settled={"grouping": "uniform", "allocation": "uniform", "groups": "1+2+3+4"}
    )
    state.gate_means = {f"group {i + 1}": {"B": 0.9, "L": 0.8} for i in range(4)}
    state.settled |= dict.fromkeys(state.gate_means, "B")
    assert GateSearch(space, TASKS, compare)._affordable(state).strategies == ("B",) * 4


def test_the_found_design_is_ungated_and_meets_the_budget() -> None:
    state = read(search(), OPEN)
    assert state.found is not None and state.comparison is not None
    assert state.found.gate is None and state.found.budget == BUDGET
    assert abs(state.found.solution(simulated.anatomy()).total / BUDGET - 1) <= 0.05
    job = state.comparison.candidates[0].jobs[TASKS[0]][0]
    methods = [m for group in from_config(dict(job.plan)).groups for m in group.methods]
    assert methods and all(method.gate is None for method in methods)
    expected = {b: {NAMES[k] for k in KEPT[i]} for i, group in enumerate(BLOCKS) for b in group}
    assert tuned(job) == expected


def test_a_diverged_gated_run_is_refused() -> None:
    gated = search()
    first, second = gated.replay({}).wanted
    outcomes = {first.key: Outcome(80.0, metrics=metrics(OPEN)), second.key: Outcome(None)}
    with pytest.raises(ValueError, match=r"gated run diverged.*lower `fit.lr`"):
        gated.replay(outcomes)


def test_only_the_gated_runs_and_the_final_comparison_are_wanted() -> None:
    gated, outcomes, asked = search(), dict[str, Outcome](), list[Job]()
    while not (state := gated.replay(outcomes)).finished:
        assert not {job.key for job in state.wanted} & outcomes.keys()
        asked.append(state.wanted[0])  # one at a time
        outcomes[state.wanted[0].key] = Outcome(80.0, metrics=metrics(OPEN))
    assert len(outcomes) == len(TASKS) + 3 * len(TASKS) * 2  # three candidates, two seeds
    assert [job.scored_on for job in asked] == ["holdout"] * 2 + ["dev"] * 12
    assert state.comparison is not None
    assert {job.key for job in state.comparison.jobs} | {job.key for job in state.gated_jobs} == (
        outcomes.keys()
    )


def test_the_reference_designs_are_the_same_jobs_in_every_search() -> None:
    """Searches by gates and by races are comparable: only the found design differs."""
    state = read(search(), OPEN)
    raced = compare(Design(("AP",) * 4, BUDGET, "bottleneck"))
    assert state.comparison is not None
    for one, other in zip(state.comparison.candidates[1:], raced.candidates[1:], strict=True):
        assert one.jobs == other.jobs
    assert state.comparison.candidates[0].jobs != raced.candidates[0].jobs
