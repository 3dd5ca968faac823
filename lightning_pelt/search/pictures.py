"""Pictures of a search: pure functions from its numbers to matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lightning_pelt.plots import FAINT, INK, MISSING, PAPER, _figure, _quiet, _title
from lightning_pelt.search.race_picture import CHOSEN, RIVAL
from lightning_pelt.search.summary import Scored, Spent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Chosen(NamedTuple):
    """A stage in the picture of choices.

    Attributes:
        stage: its name.
        scores: by option, in points.
        chosen: None as long as it is not settled.
        fresh: scores of the winner and its rival on fresh blocks; empty where there are none.
    """

    stage: str
    scores: Mapping[str, float]
    chosen: str | None
    fresh: Mapping[str, float]


def choices(stages: Sequence[Chosen], title: str = "What each stage chose") -> Figure:
    """One row for each stage: every option's score, the chosen one filled and named.

    Below it, as diamonds, the winner and its rival once more on fresh blocks: scores that nothing
    was chosen by.

    Raises:
        ValueError: there is no stage.
    """
    if not stages:
        raise ValueError("there is no choice to draw: no stage has a score yet")
    figure = _figure(8.2, 1.3 + 0.72 * len(stages))
    axes = figure.add_subplot()
    for y, stage in enumerate(stages):
        known = {option: score for option, score in stage.scores.items() if isfinite(score)}
        axes.axhline(y, color=MISSING, lw=1, zorder=0)
        others = [score for option, score in known.items() if option != stage.chosen]
        axes.scatter(others, [y] * len(others), s=26, facecolor=PAPER, edgecolor=FAINT, zorder=2)
        if stage.chosen in known:
            axes.scatter(known[stage.chosen], y, s=52, color=CHOSEN, zorder=3)
            _over(axes, f"{stage.chosen}  {known[stage.chosen]:.1f}", known[stage.chosen], y)
        for option, score in stage.fresh.items():
            mine = option == stage.chosen
            axes.scatter(score, y + 0.27, s=30, marker="D", zorder=3, linewidth=1.2,
                         facecolor=CHOSEN if mine else PAPER,
                         edgecolor=CHOSEN if mine else RIVAL)  # fmt: skip
        if len(stage.fresh) == 2:
            axes.plot(list(stage.fresh.values()), [y + 0.27] * 2, color=RIVAL, lw=1, zorder=1)
    _quiet(axes, grid="x")
    axes.spines["left"].set_visible(False)
    axes.set_yticks(range(len(stages)), [_of(stage) for stage in stages], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(stages) - 0.45, -0.6)
    axes.margins(x=0.08)
    axes.set_xlabel(
        "points; rows have blocks of their own: compare within a row", fontsize=9, color=FAINT
    )
    handles = [
        axes.scatter([], [], s=52, color=CHOSEN, label="chosen"),
        axes.scatter([], [], s=26, facecolor=PAPER, edgecolor=FAINT, label="another option"),
        axes.scatter([], [], s=30, marker="D", color=CHOSEN, label="chosen, fresh blocks"),
        axes.scatter([], [], s=30, marker="D", facecolor=PAPER, edgecolor=RIVAL,
                     label="its rival, fresh blocks"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    _title(figure, title)
    return figure


def comparison(
    plans: Sequence[Scored], title: str = "Final comparison, official dev rows"
) -> Figure:
    """Every seed as a point and their mean as a bar, for each plan, task, and over the tasks.

    Raises:
        ValueError: there is no plan.
    """
    if not plans:
        raise ValueError("there is no plan to draw: the final comparison has not begun")
    tasks = list(plans[0].scores)
    panels = [*tasks, "mean over tasks"] if len(tasks) > 1 else tasks
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = _figure(2.2 + 2.6 * columns, 0.9 + rows * (0.75 + 0.36 * len(plans)))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    every: list[Axes] = list(grid.ravel())
    for panel, task in zip(every, panels, strict=False):
        for y, plan in enumerate(plans):
            colour = CHOSEN if y == 0 else FAINT
            scores = plan.scores.get(task, plan.overall)
            points = [score for score in scores if score is not None]
            panel.scatter(points, [y] * len(points), s=20, color=colour, alpha=0.65, linewidth=0)
            if points:
                panel.plot([np.mean(points)] * 2, [y - 0.3, y + 0.3], color=INK, lw=2)
        panel.set_title(task, fontsize=10, color=INK, loc="left")
        _quiet(panel, grid="x")
        panel.spines["left"].set_visible(False)
        panel.margins(x=0.1)
        panel.xaxis.set_major_locator(MaxNLocator(4))
    for panel in every[len(panels) :]:
        panel.set_axis_off()
    labels = [p.title + (f"\n({p.mark})" if p.mark else "") for p in plans]
    every[0].set_yticks(range(len(plans)), labels, fontsize=9)
    every[0].set_ylim(len(plans) - 0.4, -0.6)
    for panel in every:
        panel.tick_params(axis="y", length=0, labelsize=9)
    figure.supxlabel("points; a dot for each seed, a bar for their mean", fontsize=9, color=FAINT)
    _title(figure, title)
    return figure


def cost(stages: Sequence[Spent], title: str = "What the search cost") -> Figure:
    """Fits of every stage (solid) beside those of the paper's protocol (pale), with the time.

    Raises:
        ValueError: there is no stage.
    """
    if not stages:
        raise ValueError("there is no cost to draw: no stage has begun")
    figure = _figure(8.0, 1.25 + 0.58 * len(stages))
    axes = figure.add_subplot()
    longest = max(max(s.cells + s.reused, s.paper_cells) for s in stages) or 1
    for y, stage in enumerate(stages):
        axes.barh(y, stage.paper_cells, height=0.62, color=MISSING)
        axes.barh(y, stage.cells, height=0.36, color=CHOSEN)
        axes.barh(y, stage.reused, height=0.36, left=stage.cells, color=RIVAL, alpha=0.75)
        end = max(stage.cells + stage.reused, stage.paper_cells) + 0.015 * longest
        reused = f", {stage.reused:,} reused" if stage.reused else ""
        lines = [f"{stage.cells:,} fits, {minutes(stage.seconds)}{reused}"]
        if stage.paper_cells:
            lines += [f"paper: {stage.paper_cells:,} fits, {minutes(stage.paper_seconds)}"]
        axes.annotate("\n".join(lines), (end, y), va="center", fontsize=7.5, color=INK)
    _quiet(axes, grid="x")
    axes.spines["left"].set_visible(False)
    axes.set_yticks(range(len(stages)), [s.stage for s in stages], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.38 * longest)
    axes.set_ylim(len(stages) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    handles = [
        axes.barh(0, 0, color=CHOSEN, label="done"),
        axes.barh(0, 0, color=RIVAL, alpha=0.75, label="reused from an earlier stage"),
        axes.barh(0, 0, color=MISSING, label="the paper's protocol: 100 designs for each option"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    axes.set_xlabel("fits", fontsize=9, color=FAINT)
    _title(figure, title)
    return figure


def minutes(seconds: float) -> str:
    """A time for people: ``"12 s"``, ``"34 min"``, ``"5.6 h"``, ``"7.8 days"``."""
    for size, unit, digits in ((172_800, "days", 1), (7_200, "h", 1), (120, "min", 0)):
        if seconds >= size:
            return f"{seconds / {'days': 86_400, 'h': 3_600, 'min': 60}[unit]:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def _over(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), (0, 7), textcoords="offset points", ha="center", va="bottom",
                  fontsize=8.5, color=INK, fontweight="bold")  # fmt: skip


def _of(stage: Chosen) -> str:
    count = len(stage.scores)
    return f"{stage.stage}\n{count} options" if count > 1 else stage.stage
