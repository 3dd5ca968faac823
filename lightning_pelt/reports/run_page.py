"""The report of one run, or of two side by side: one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lightning_pelt import __version__
from lightning_pelt.reports.figures import GATES
from lightning_pelt.reports.run_charts import (
    MOST_CHARTS,
    MOST_POINTS,
    STAGES,
    charts_of,
    gate_of,
    gates_of,
    grid_of,
    lines_of,
    order,
    place_of,
)
from lightning_pelt.reports.run_data import Run, Series
from lightning_pelt.utils.text import readable_bytes

MOST_DIFFERENCES = 200
SECTIONS = ("curves", "gates", "rates", "schedule", "other")
HEADER = (
    ("backbone", "Backbone"),
    ("plan.class_path", "Plan"),
    ("task.class_path", "Task"),
    ("lr", "Learning rate"),
)


def run_page(runs: Sequence[Run]) -> str:
    """The page of one run, or of two with shared scales.

    Scripts, styles and values are in the page, and a content security policy forbids it to load
    anything. Names and values of the runs are escaped.

    Args:
        runs: one or two.

    Returns:
        HTML.
    """
    script, style, template = (
        files(__package__).joinpath("page", name).read_text(encoding="utf-8")
        for name in ("run.js", "run.css", "run.html")
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = page_data(runs)
    return environment.from_string(template).render(
        runs=runs,
        names=_names(runs),
        data=data,
        has={each: any(chart["section"] == each for chart in data["charts"]) for each in SECTIONS},
        headers=[_header(run) for run in runs],
        notes=[_notes(run, each) for run, each in zip(runs, data["runs"], strict=True)],
        results=_results(runs),
        parameters=_parameters(runs),
        differences=_differences(runs),
        most_differences=MOST_DIFFERENCES,
        left_out=data["left_out"],
        version=__version__,
        script=Markup(script),
        style=Markup(style),
        digest=digest,
    )


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """What the script of the page draws, as plain data."""
    charts = charts_of(runs)
    own = {"curves": STAGES}
    labels: dict[str, list[str]] = {}
    for chart in charts:
        found = labels.setdefault(_colours(chart.section), list(own.get(chart.section, ())))
        new = {label for lines in chart.runs for label in lines} - {*found}
        found += sorted(new)
    blocks, sites = grid_of(runs)
    others = [chart for chart in charts if chart.section == "other"]
    hidden = {id(chart) for chart in others[MOST_CHARTS:]}
    return {
        "runs": [
            {"name": name, "gates": gates_of(run, blocks, sites), "epochs": _changes(run.epochs)}
            for name, run in zip(_names(runs), runs, strict=True)
        ],
        "blocks": blocks,
        "sites": sites,
        "charts": [
            {
                "section": chart.section,
                "title": chart.title,
                "axis": chart.axis,
                "runs": lines_of(chart, labels[_colours(chart.section)]),
            }
            for chart in charts
            if id(chart) not in hidden
        ],
        "left_out": len(hidden),
        "colours": [[round(255 * c) for c in GATES(i / 31)[:3]] for i in range(32)],
    }


def _colours(section: str) -> str:
    """Methods have one colour in all their charts."""
    return "methods" if section in ("gates", "rates", "schedule") else section


def _names(runs: Sequence[Run]) -> list[str]:
    """Short names that differ."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [run.location for run in runs]


def _changes(epochs: Series) -> list[tuple[int, int]]:
    """The first step of each epoch."""
    changes: list[tuple[int, int]] = []
    for step, epoch in epochs.finite():
        if not changes or changes[-1][1] != int(epoch):
            changes.append((step, int(epoch)))
    return changes


def _header(run: Run) -> list[tuple[str, str]]:
    facts = [("Folder", run.location)]
    if run.last_step is not None:
        facts.append(("Last step", f"{run.last_step:,}"))
    if run.written is not None:
        facts.append(("Last written", f"{run.written:%Y-%m-%d %H:%M:%S}"))
    for key, title in HEADER:
        value = run.settings.get(key)
        if value not in (None, "null"):
            facts.append((title, value.rpartition(".")[2] if key.endswith("class_path") else value))
    return facts


def _notes(run: Run, data: dict[str, Any]) -> list[str]:
    """Those of the reader, and what is not drawn."""
    notes = list(run.notes)
    longest = max(
        (len(each.steps) for name, each in run.series.items() if gate_of(name) is None), default=0
    )
    if longest > MOST_POINTS:
        notes.append(
            f"Curves have up to {longest:,} values; of each interval of steps, the smallest and "
            "the largest are drawn."
        )
    gates = data["gates"]
    if len(gates["steps"]) < gates["total"]:
        notes.append(f"Of {gates['total']:,} steps with gates, {len(gates['steps'])} are drawn.")
    return notes


@dataclass(frozen=True)
class Extremes:
    """Values of a scalar as ``(value, step)`` in text."""

    last: tuple[str, str]
    lowest: tuple[str, str]
    highest: tuple[str, str]


def _results(runs: Sequence[Run]) -> list[tuple[str, list[Extremes | None]]]:
    """Metrics and losses by name, for each run."""
    names = sorted({name for run in runs for name in run.series}, key=order)
    shown = [n for n in names if (place := place_of(n)) and place.section in ("curves", "other")]
    return [(name, [_extremes(run.series.get(name)) for run in runs]) for name in shown[:200]]


def _extremes(series: Series | None) -> Extremes | None:
    if series is None:
        return None
    pairs = series.finite()
    if not pairs:
        none = ("NaN", f"{series.steps[-1]:,}")
        return Extremes(none, none, none)

    def shown(pair: tuple[int, float]) -> tuple[str, str]:
        return (f"{pair[1]:.4g}" if math.isfinite(pair[1]) else "NaN"), f"{pair[0]:,}"

    last = shown((series.steps[-1], series.values[-1]))
    lowest, highest = (shown(choose(pairs, key=lambda pair: pair[1])) for choose in (min, max))
    return Extremes(last, lowest, highest)


def _parameters(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The counts of methods for each run, with lengths of bars in percent of the largest of all."""
    tables = [_counts(run.parameters) for run in runs]
    largest = max((n for t in tables for row in t for n in row["bars"].values()), default=0) or 1
    return [
        {
            "rows": [
                row | {"lengths": {k: f"{100 * n / largest:.3f}" for k, n in row["bars"].items()}}
                for row in table
            ],
            "sums": _sums(run.parameters),
        }
        for table, run in zip(tables, runs, strict=True)
    ]


def _counts(numbers: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each method, and for the head."""
    methods = [n.removesuffix("/deployed") for n in numbers if n.endswith("/deployed")]
    methods = [name for name in methods if name.rpartition("/")[2] != "total"]
    heads = [name for name in numbers if name.rpartition("/")[2] == "head" and numbers[name]]
    rows = [
        {
            "name": name,
            "bars": {k: numbers.get(f"{name}/{k}", 0) for k in ("trained", "deployed")},
            "gates": numbers.get(f"{name}/gates"),
            "share": numbers.get(f"{name}/share"),
        }
        for name in methods
    ]
    return rows + [
        {"name": name, "bars": dict.fromkeys(("trained", "deployed"), numbers[name])}
        | {"gates": None, "share": None}
        for name in heads
    ]


def _sums(numbers: dict[str, float]) -> list[tuple[str, str]]:
    sums = [
        ("trained in all", "trained", "{:,.0f} parameters"),
        ("backbone", "backbone", "{:,.0f} parameters"),
        ("methods and gates, of the backbone", "total/share", "{:.2f} %"),
    ]
    found = [(what, form.format(numbers[key])) for what, key, form in sums if key in numbers]
    if "bytes" in numbers:
        found.append(("tensors in a checkpoint", readable_bytes(numbers["bytes"])))
    return found


def _differences(runs: Sequence[Run]) -> list[tuple[str, list[str | None]]]:
    """The settings that differ between runs; all, if there is one run."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [(name, [run.settings.get(name) for run in runs]) for name in names]
    return [row for row in rows if len(runs) == 1 or len(set(row[1])) > 1]
