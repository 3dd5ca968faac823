"""Where scalars are drawn, and which points."""

from __future__ import annotations

import math
import random

import pytest
from reports.run_files import gated

from lightning_pelt.reports.run_charts import (
    Place,
    charts_of,
    gate_of,
    gates_of,
    grid_of,
    lines_of,
    place_of,
    thinned,
)
from lightning_pelt.reports.run_data import Run, Series


def run_of(rows: list[tuple[int, dict[str, float]]]) -> Run:
    run = Run("a", "/a")
    for step, scalars in rows:
        for name, value in scalars.items():
            run.series.setdefault(name, Series()).add(step, value)
    run.series.pop("epoch", None)
    return run


@pytest.mark.parametrize(
    ("name", "section", "title", "label"),
    [
        ("train/loss", "curves", "loss", "train"),
        ("val_accuracy", "curves", "accuracy", "val"),
        ("train/loss_step", "curves", "loss", "train, by step"),
        ("test/f1/dataloader_idx_1", "curves", "f1/dataloader_idx_1", "test"),
        ("gate/mean/lora", "gates", "Mean gate of each method", "lora"),
        ("lr-AdamW/head", "rates", "Learning rate of each parameter group", "head"),
        ("lr-AdamW", "rates", "Learning rate of each parameter group", "AdamW"),
        ("lr-SGD/pg1-momentum", "rates", "Momentum", "pg1"),
        ("schedule/lora/open", "schedule", "Openness of the gates", "lora"),
        ("schedule/pruned", "schedule", "Pruned gates", "all methods"),
        ("loss", "other", "loss", "loss"),
        ("gate/one", "other", "gate/one", "gate/one"),
    ],
)
def test_places(name: str, section: str, title: str, label: str) -> None:
    place = place_of(name)
    assert isinstance(place, Place)
    assert (place.section, place.title, place.label) == (section, title, label)


@pytest.mark.parametrize(
    ("name", "gate"),
    [
        ("gate/00/lora.query", ("00", "lora.query")),
        ("gate/encoder.07/prefix", ("encoder.07", "prefix")),
        ("gate/mean/lora", None),
        ("gate/lora", None),
        ("val/gate/x", None),
    ],
)
def test_gates(name: str, gate: tuple[str, str] | None) -> None:
    assert gate_of(name) == gate


def test_blocks_sort_by_number() -> None:
    names = ["gate/b.10/x", "gate/b.9/x", "gate/b.9/a"]
    assert grid_of([run_of([(1, dict.fromkeys(names, 0.5))])]) == (["b.9", "b.10"], ["a", "x"])


def test_gates_of_two_runs_have_one_grid() -> None:
    first, second = run_of(gated([0, 10])), run_of([(5, {"gate/02/adapter": 0.25})])
    blocks, sites = grid_of([first, second])
    assert (blocks, sites) == (["00", "01", "02"], ["adapter", "lora.query", "prefix"])
    drawn = gates_of(first, blocks, sites)
    assert (drawn["steps"], drawn["total"]) == ([0, 10], 2)
    assert drawn["values"][1] == [[None, 0.51, 0.49], [None, 0.51, 0.49], [None, None, None]]
    assert gates_of(second, blocks, sites)["values"][0][2] == [0.25, None, None]


def test_of_many_steps_with_gates_some_are_drawn_to_the_last() -> None:
    run = run_of([(step, {"gate/0/a": step / 5000}) for step in range(0, 5000, 2)])
    drawn = gates_of(run, ["0"], ["a"])
    assert (len(drawn["steps"]), drawn["total"]) == (200, 2500)
    assert (drawn["steps"][0], drawn["steps"][-1]) == (0, 4998)
    assert drawn["values"] == [[[float(f"{step / 5000:.5g}")]] for step in drawn["steps"]]


@pytest.mark.parametrize("count", [599, 600, 601, 700, 50_000])
def test_thinned_curves_keep_peaks_ends_and_gaps(count: int) -> None:
    draw = random.Random(count)
    values = [draw.random() for _ in range(count)]
    values[count // 3], values[count // 2], values[count // 4] = 90.0, -90.0, math.nan
    points = list(zip(range(count), values, strict=True))
    kept = thinned(Series(list(range(count)), values))
    assert len(kept) <= 600
    assert kept == [point for point in points if point in kept]  # in order, none invented
    assert {points[0], points[-1], points[count // 3], points[count // 2]} <= {*kept}
    assert any(math.isnan(value) for _, value in kept)


def test_lines_that_cover_each_other_are_one() -> None:
    run = run_of(gated([0, 10]))
    chart = next(chart for chart in charts_of([run]) if chart.section == "rates")
    (lines,) = lines_of(chart, ["head", "lora", "prefix"])
    assert [(line["label"], line["colour"]) for line in lines] == [("head", 0), ("lora, prefix", 1)]


def test_a_chart_needs_a_curve() -> None:
    run = run_of([(1, {"test/loss": 1.0, "val/loss": 3.0, "test/f1": 2.0}), (2, {"val/loss": 2.0})])
    assert [chart.title for chart in charts_of([run])] == ["loss"]
    assert {*charts_of([run])[0].runs[0]} == {"val", "test"}
