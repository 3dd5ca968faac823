"""The history of gates is bounded, thinned evenly, and the same after a resume."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lightning_pelt.reports.gate_history import GateHistory, closed_for_good

NAMES = ("00/lora", "01/lora")


def reading(step: int) -> dict[str, float]:
    return {name: (step % 97 + i + 1) / 100 for i, name in enumerate(NAMES)}


def filled(steps: range, most: int = 200) -> GateHistory:
    history = GateHistory(most)
    for step in steps:
        history.add(step, reading(step))
    return history


def test_few_readings_are_all_kept():
    history = filled(range(0, 2000, 10))
    assert history.steps == [*range(0, 2000, 10)]
    expected = [[*reading(step).values()] for step in history.steps]
    np.testing.assert_allclose(history.values, expected, atol=5e-4)


@pytest.mark.parametrize("every", [1, 7, 10])
@pytest.mark.parametrize("count", [201, 999, 5000])
def test_many_are_thinned_evenly(every, count):
    history = filled(range(0, every * count, every))
    *kept, last = history.steps
    assert last == every * (count - 1)
    assert len({b - a for a, b in pairwise(kept)}) == 1
    assert kept[0] == 0
    assert 0 < last - kept[-1] <= kept[1]
    assert 100 <= len(history) <= 201
    for step, row in zip(history.steps, history.values, strict=True):
        assert row == pytest.approx([*reading(step).values()], abs=5e-4)


@pytest.mark.parametrize("cut", [50, 333, 777])
def test_a_resumed_history_is_that_of_a_run_without_interruption(cut):
    first, second = filled(range(cut), most=40), GateHistory(most=40)
    state = first.state_dict()
    second.load_state_dict(state)
    for step in range(cut, 1000):
        second.add(step, reading(step))
    whole = filled(range(1000), most=40)
    assert second.steps == whole.steps
    assert second.stride == whole.stride
    np.testing.assert_array_equal(second.values, whole.values)
    assert len(state["steps"]) == len(state["values"]) <= 41, "a later reading changed the state"


def test_a_checkpoint_takes_it_without_pickle(tmp_path):
    history = filled(range(1000))
    torch.save(history.state_dict(), tmp_path / "state.pt")
    assert (tmp_path / "state.pt").stat().st_size < 5_000
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = GateHistory()
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.values, history.values)


def test_a_run_from_an_earlier_step_replaces_what_follows():
    history = filled(range(0, 100, 10))
    history.add(45, reading(45))
    assert history.steps == [0, 10, 20, 30, 40, 45]
    history.add(0, reading(0))  # another run from the start
    assert history.steps == [0]


def test_another_run_begins_with_the_smallest_stride():
    history = filled(range(1000), most=10)
    assert history.stride > 1
    for step in range(5):
        history.add(step, reading(step))
    assert history.steps == [0, 1, 2, 3, 4]


def test_other_gates_begin_another_history():
    history = filled(range(5))
    history.add(5, {"00/adapter": 0.25})
    assert (history.names, history.steps) == (["00/adapter"], [5])
    assert history.values.tolist() == [[0.25]]


def test_only_closed_gates_are_zero():
    history = GateHistory()
    history.add(0, {"a/x": 0.0, "b/x": 1e-30, "c/x": math.nan})
    closed, open_, missing = history.values[0].tolist()
    assert closed == 0 < open_ < 1e-4
    assert math.isnan(missing)


def test_where_gates_are_closed_for_good():
    history = GateHistory()
    for step, (a, b) in enumerate([(0.0, 0.5), (0.4, 0.0), (0.0, 0.0), (0.0, 0.3)]):
        history.add(10 * step, {"00/a": a, "00/b": b})
    assert closed_for_good(history, ["00/a", "00/b", "00/other"]) == {"00/a": 20}


def test_most_allows_two_readings():
    with pytest.raises(ValueError, match="most=1"):
        GateHistory(1)
