"""Gates as the searcher: what is kept of made-up gates, and what is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import simulated
from simulated import TASKS

from lightning_pelt.design_space import Design
from lightning_pelt.gate import Gate
from lightning_pelt.plan import from_config
from lightning_pelt.search.cell import Cell, Outcome
from lightning_pelt.search.course import Walk
from lightning_pelt.search.finals import Finals
from lightning_pelt.search.gates import GatesCourse
from lightning_pelt.search.space import Space

BUDGET = simulated.BUDGET
BLOCKS = ((0,), (1, 2), (3, 4), (5,))  # four uniform groups of six blocks
NAMES = {"A": "adapter", "P": "prefix", "B": "bitfit", "L": "lora"}
Gates = Sequence[Mapping[str, float]]  # by letter, for each group
# What stays, at 0.5 or more: A and L; P alone, at the threshold; L, the most open; all.
OPEN: Gates = (
    {"A": 0.6, "P": 0.4, "B": 0.3, "L": 0.9},
    {"A": 0.2, "P": 0.5, "B": 0.1, "L": 0.49},
    {"A": 0.2, "P": 0.1, "B": 0.3, "L": 0.4},
    {"A": 0.6, "P": 0.7, "B": 0.8, "L": 0.9},
)
KEPT = ("AL", "P", "L", "APBL")


def course(subsets: Sequence[str] | None = None, **arguments: Any) -> GatesCourse:
    space = Space(simulated.anatomy(), BUDGET, subsets=subsets)
    return GatesCourse(space, TASKS, finals, **arguments)


def finals(found: Design) -> Finals:
    return Finals(found, simulated.anatomy(), BUDGET, TASKS, (0, 1), ("L", "B"))


def metrics(gates: Gates, tilt: float = 0.0) -> dict[str, float]:
    """Of a fit; with a tilt, the blocks of a group differ by it and have the same mean."""
    (stack,) = simulated.anatomy().stacks
    return {
        f"gate/{stack.name}.{block}/{NAMES[letter]}": value + tilt * (2 * i - len(blocks) + 1)
        for group, blocks in zip(gates, BLOCKS, strict=True)
        for i, block in enumerate(blocks)
        for letter, value in group.items()
    }


def read(course: GatesCourse, *gates: Gates, tilt: float = 0.0) -> Walk:
    """The walk once the gated runs are done; one set of gates for all tasks, or one for each."""
    cells = course.walk({}).wanted
    each = gates * len(cells) if len(gates) == 1 else gates
    return course.walk(
        {
            cell.key: Outcome(80.0, metrics=metrics(one, tilt))
            for cell, one in zip(cells, each, strict=True)
        }
    )


def kept(walk: Walk) -> tuple[str, ...]:
    return tuple(walk.settled[f"group {i + 1}"] for i in range(4))


def tuned(cell: Cell) -> dict[int, set[str]]:
    """Methods by block of a cell's plan."""
    found: dict[int, set[str]] = {}
    for group in from_config(dict(cell.plan)).groups:
        for block in group.blocks or ():
            found.setdefault(block, set()).update(method.name for method in group.methods)
    return found


def test_one_gated_run_for_each_task_has_every_method_in_every_block() -> None:
    walk = course().walk({})
    assert [cell.task for cell in walk.wanted] == [*TASKS] and walk.wanted == walk.gated
    assert len({cell.seed for cell in walk.wanted}) == 1
    for cell in walk.wanted:
        assert cell.judge == "holdout"
        assert tuned(cell) == {block: {*NAMES.values()} for block in range(6)}
        assert abs(cell.parameters / BUDGET - 1) <= 0.05
        methods = [m for group in from_config(dict(cell.plan)).groups for m in group.methods]
        assert all(method.gate == Gate() for method in methods)


def test_methods_that_no_subset_has_do_not_take_part() -> None:
    walk = course(("AL", "LP")).walk({})
    assert tuned(walk.wanted[0]) == {block: {"adapter", "lora", "prefix"} for block in range(6)}


def test_methods_stay_whose_gates_are_open_and_at_least_the_most_open() -> None:
    walk = read(course(), OPEN)
    assert kept(walk) == KEPT
    assert walk.found is not None and walk.found.strategies == KEPT


def test_gates_are_averaged_over_the_blocks_of_a_group() -> None:
    # Single blocks fall below the threshold, or above; their groups' means are the same.
    walk = read(course(), OPEN, tilt=0.15)
    assert kept(walk) == KEPT
    for group, readings in zip(OPEN, walk.readings.values(), strict=True):
        assert readings == pytest.approx(group)


def test_gates_are_averaged_over_tasks() -> None:
    def flat(**gates: float) -> Gates:
        return [gates] * 4

    one, other = flat(A=0.6, P=0.9, B=0.1, L=0.2), flat(A=0.3, P=0.3, B=0.1, L=0.7)
    walk = read(course(), one, other)
    assert walk.readings["group 3"] == pytest.approx({"A": 0.45, "P": 0.6, "B": 0.1, "L": 0.45})
    assert kept(walk) == ("P",) * 4


def test_the_threshold_can_be_moved() -> None:
    assert kept(read(course(keep=0.85), OPEN)) == ("L", "P", "L", "L")


def test_a_group_that_kept_bitfit_alone_gets_its_next_most_open_method() -> None:
    gates = [*OPEN[:2], {"A": 0.3, "P": 0.2, "B": 0.9, "L": 0.1}, OPEN[3]]
    walk = read(course(), gates)
    assert kept(walk) == ("AL", "P", "AB", "APBL")
    assert walk.found is not None and walk.found.strategies[2] == "AB"


def test_groups_that_kept_bitfit_alone_are_filled_until_the_budget_is_met() -> None:
    bitfit = {"A": 0.1, "P": 0.2, "B": 0.9, "L": 0.3}
    other = {"A": 0.1, "P": 0.4, "B": 0.9, "L": 0.3}
    assert kept(read(course(), [other, OPEN[1], OPEN[2], bitfit])) == ("PB", "P", "L", "BL")


def test_a_group_of_bitfit_alone_stays_where_the_budget_is_met() -> None:
    # A share of each of the six blocks is 224, which is the number of its biases.
    space = Space(simulated.anatomy(), 6 * 224)
    walk = Walk(settled={"grouping": "uniform", "allocation": "uniform", "groups": "1+2+3+4"})
    walk.readings = {f"group {i + 1}": {"B": 0.9, "L": 0.8} for i in range(4)}
    walk.settled |= dict.fromkeys(walk.readings, "B")
    assert GatesCourse(space, TASKS, finals)._affordable(walk).strategies == ("B",) * 4


def test_what_is_found_is_ungated_and_meets_the_budget() -> None:
    walk = read(course(), OPEN)
    assert walk.found is not None and walk.finals is not None
    assert walk.found.gate is None and walk.found.budget == BUDGET
    assert abs(walk.found.solution(simulated.anatomy()).total / BUDGET - 1) <= 0.05
    cell = walk.finals.contestants[0].cells[TASKS[0]][0]
    methods = [m for group in from_config(dict(cell.plan)).groups for m in group.methods]
    assert methods and all(method.gate is None for method in methods)
    expected = {b: {NAMES[k] for k in KEPT[i]} for i, group in enumerate(BLOCKS) for b in group}
    assert tuned(cell) == expected


def test_a_gated_run_that_diverged_says_so() -> None:
    gated = course()
    first, second = gated.walk({}).wanted
    outcomes = {first.key: Outcome(80.0, metrics=metrics(OPEN)), second.key: Outcome(None)}
    with pytest.raises(ValueError, match=r"gated run diverged.*lower `fit.lr`"):
        gated.walk(outcomes)


def test_the_gated_runs_and_the_finals_are_all_that_is_asked_for() -> None:
    gated, outcomes, asked = course(), dict[str, Outcome](), list[Cell]()
    while not (walk := gated.walk(outcomes)).over:
        assert not {cell.key for cell in walk.wanted} & outcomes.keys()
        asked.append(walk.wanted[0])  # one at a time
        outcomes[walk.wanted[0].key] = Outcome(80.0, metrics=metrics(OPEN))
    assert len(outcomes) == len(TASKS) + 3 * len(TASKS) * 2  # three contestants, two seeds
    assert [cell.judge for cell in asked] == ["holdout"] * 2 + ["dev"] * 12
    assert walk.finals is not None
    assert {cell.key for cell in walk.finals.cells} | {cell.key for cell in walk.gated} == (
        outcomes.keys()
    )


def test_the_rivals_of_the_finals_are_those_of_every_method() -> None:
    """Gates and races are compared on the very same cells: only the found design differs."""
    walk = read(course(), OPEN)
    raced = finals(Design(("AP",) * 4, BUDGET, "bottleneck"))
    assert walk.finals is not None
    for one, other in zip(walk.finals.contestants[1:], raced.contestants[1:], strict=True):
        assert one.cells == other.cells
    assert walk.finals.contestants[0].cells != raced.contestants[0].cells
