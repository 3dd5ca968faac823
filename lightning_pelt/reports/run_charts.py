"""Which charts the scalars of runs make, and how many of their points are drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from lightning_pelt.reports.run_data import Run, Series

MOST_POINTS, MOST_STEPS, MOST_CHARTS = 600, 200, 60
COLOURS = 7  # of the page, see page/run.css
STAGE = re.compile(r"(train|valid|val|validation|test|predict)[/_](.+)")
STAGES = ("train", "val", "test")  # have the first colours
SUMMARIES = {
    "mean": ("Mean gate of each method", "mean gate, 0 closed to 1 open"),
    "spread": (
        "Spread of the gates over the examples of a batch",
        "standard deviation of the gate",
    ),
}
SCHEDULES = {
    "open": ("Openness of the gates", "openness, 0 to 1"),
    "lr_factor": ("Factor of the learning rate", "factor"),
    "pruned": ("Pruned gates", "number of gates"),
}


@dataclass(frozen=True, order=True)
class Place:
    """Where a scalar is drawn: a section of the page, a chart in it, a line of the chart."""

    section: str
    title: str
    axis: str
    label: str


@dataclass
class Chart:
    """Lines of one or two runs over the same axes.

    Attributes:
        section: part of the page.
        title: of the chart.
        axis: title of the vertical axis.
        runs: for each run its scalars by label.
    """

    section: str
    title: str
    axis: str
    runs: list[dict[str, Series]] = field(default_factory=list)


def place_of(name: str) -> Place | None:
    """The chart of a scalar; None for a single gate, which the heat map shows.

    >>> place_of("val/accuracy")
    Place(section='curves', title='accuracy', axis='accuracy', label='val')
    >>> place_of("lr-AdamW/head").label
    'head'
    """
    if gate_of(name) is not None:
        return None
    first, _, rest = name.partition("/")
    if first == "gate" and rest.partition("/")[0] in SUMMARIES:
        kind, _, method = rest.partition("/")
        return Place("gates", *SUMMARIES[kind], method)
    if first == "schedule" and name.rpartition("/")[2] in SCHEDULES:
        label = rest.rpartition("/")[0] or "all methods"
        return Place("schedule", *SCHEDULES[name.rpartition("/")[2]], label)
    if name.startswith("lr-"):
        return _rate(name)
    stage = STAGE.fullmatch(name)
    if stage is None:
        return Place("other", name, name, name)
    metric = re.fullmatch(r"(.+)_(step|epoch)", stage[2])
    if metric is None:
        return Place("curves", stage[2], stage[2], stage[1])
    return Place("curves", metric[1], metric[1], f"{stage[1]}, by {metric[2]}")


def _rate(name: str) -> Place:
    """``lr-<optimizer>/<group>``, of Lightning's ``LearningRateMonitor``."""
    group = name.partition("/")[2] or name.removeprefix("lr-")
    for kind in ("momentum", "weight_decay"):
        if group.endswith(f"-{kind}"):
            what = kind.replace("_", " ")
            return Place("rates", what.capitalize(), what, group.removesuffix(f"-{kind}"))
    return Place("rates", "Learning rate of each parameter group", "learning rate", group)


def gate_of(name: str) -> tuple[str, str] | None:
    """The block and the site of ``gate/<block>/<site>``."""
    block, _, site = name.removeprefix("gate/").rpartition("/")
    if not name.startswith("gate/") or not block or block in SUMMARIES:
        return None
    return block, site


def charts_of(runs: Sequence[Run]) -> list[Chart]:
    """The charts of one run, or of two with the same axes.

    Charts that would have one value of each line are left out: the table of values has them.
    """
    charts: dict[tuple[str, str], Chart] = {}
    for number, run in enumerate(runs):
        for name in sorted(run.series, key=order):
            place = place_of(name)
            if place is None:
                continue
            key = (place.section, place.title)
            empty = Chart(*key, place.axis, [{} for _ in runs])
            charts.setdefault(key, empty).runs[number][place.label] = run.series[name]
    drawn = [chart for chart in charts.values() if _has_curve(chart)]
    return sorted(drawn, key=lambda chart: chart.section)


def order(name: str) -> tuple[int, bool, str]:
    """Training, validation, test; of each, the loss comes first."""
    stage = STAGE.fullmatch(name)
    known = ["train", "val", "valid", "validation", "test", "predict"]
    return known.index(stage[1]) if stage else len(known), "loss" not in name, name


def _has_curve(chart: Chart) -> bool:
    return any(len(series.steps) > 1 for lines in chart.runs for series in lines.values())


def lines_of(chart: Chart, labels: Sequence[str]) -> list[list[dict[str, Any]]]:
    """The lines of each run as plain data for the page.

    Args:
        chart: its lines.
        labels: of all lines of the section, which gives each label one colour in all its charts.
    """
    return [
        [_line(series, names, labels) for names, series in _merged(lines)] for lines in chart.runs
    ]


def _merged(lines: dict[str, Series]) -> list[tuple[list[str], Series]]:
    """Lines that cover each other as one, with all their labels."""
    merged: dict[Any, tuple[list[str], Series]] = {}
    for label, series in lines.items():
        key = (tuple(series.steps), tuple(map(repr, series.values)))
        merged.setdefault(key, ([], series))[0].append(label)
    return list(merged.values())


def _line(series: Series, names: list[str], labels: Sequence[str]) -> dict[str, Any]:
    index = labels.index(names[0])
    points = thinned(series)
    return {
        "label": ", ".join(names),
        "colour": index % COLOURS,
        "dash": index // COLOURS,
        "points": [[step, rounded(value)] for step, value in points],
        "count": len(series.steps),
    }


def thinned(series: Series, most: int = MOST_POINTS) -> list[tuple[int, float]]:
    """At most ``most`` points: of each interval of steps the smallest and the largest value.

    A value that is not finite is kept, since the line has a gap there: one of each interval. The
    first and the last point are kept too.
    """
    points = list(zip(series.steps, series.values, strict=True))
    if len(points) <= most:
        return points
    edges = [round(i * (len(points) - 2) / (most // 3 - 1)) + 1 for i in range(most // 3)]
    kept = {0, len(points) - 1}
    for start, end in pairwise(edges):
        finite = [i for i in range(start, end) if math.isfinite(points[i][1])]
        gap = [i for i in range(start, end) if not math.isfinite(points[i][1])]
        kept |= set(gap[:1])
        if finite:
            kept |= {
                min(finite, key=lambda i: points[i][1]),
                max(finite, key=lambda i: points[i][1]),
            }
    return [points[i] for i in sorted(kept)]


def rounded(value: float | None) -> float | None:
    """Five significant digits, which is more than can be seen; None if it is not finite."""
    return float(f"{value:.5g}") if value is not None and math.isfinite(value) else None


def gates_of(run: Run, blocks: Sequence[str], sites: Sequence[str]) -> dict[str, Any]:
    """The gates of a run at no more than ``MOST_STEPS`` steps, as plain data for the page.

    Args:
        run: may have no gates.
        blocks: of all runs.
        sites: of all runs.

    Returns:
        ``steps``; ``values``, for each step those of ``blocks`` by ``sites``; ``total``, the number
        of steps that were logged.
    """
    series = {gate: each for name, each in run.series.items() if (gate := gate_of(name))}
    logged = sorted({step for each in series.values() for step in each.steps})
    count = min(len(logged), MOST_STEPS)
    steps = [logged[round(i * (len(logged) - 1) / max(count - 1, 1))] for i in range(count)]
    tables = {
        gate: dict(zip(each.steps, each.values, strict=True)) for gate, each in series.items()
    }
    absent: dict[int, float] = {}
    values = [
        [[rounded(tables.get((b, s), absent).get(step)) for s in sites] for b in blocks]
        for step in steps
    ]
    return {"steps": steps, "values": values, "total": len(logged)}


def grid_of(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """The blocks and the sites of the gates of all runs; numbers in names sort as numbers."""
    gates = [gate for run in runs for name in run.series if (gate := gate_of(name))]
    return (
        sorted({block for block, _ in gates}, key=_natural),
        sorted({site for _, site in gates}, key=_natural),
    )


def _natural(name: str) -> list[tuple[bool, int, str]]:
    parts = re.findall(r"\d+|\D+", name)
    return [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts]
