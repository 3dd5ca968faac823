"""Figures of a search: pure functions from its numbers to matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lightning_pelt.reports.figures import (
    FAINT,
    INK,
    MISSING,
    new_figure,
    set_figure_title,
    style_axes,
)
from lightning_pelt.search.report.race_figure import ACTIVE, CHOSEN
from lightning_pelt.search.report.summary import CandidateScores, StageCost
from lightning_pelt.utils.text import readable_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def comparison(
    plans: Sequence[CandidateScores], title: str = "Final comparison, dev rows"
) -> Figure:
    """Draw each seed as a point and their mean as a bar, for each plan and task and over the tasks.

    Raises:
        ValueError: there is no plan.
    """
    if not plans:
        raise ValueError("there is no plan to draw: the final comparison has not started")
    tasks = list(plans[0].scores)
    panels = [*tasks, "mean over tasks"] if len(tasks) > 1 else tasks
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = new_figure(2.2 + 2.6 * columns, 0.9 + rows * (0.75 + 0.36 * len(plans)))
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    every: list[Axes] = list(grid.ravel())
    for panel, task in zip(every, panels, strict=False):
        for y, plan in enumerate(plans):
            points = _points(plan, task)
            colour = CHOSEN if y == 0 else FAINT
            panel.scatter(points, [y] * len(points), s=20, color=colour, alpha=0.65, linewidth=0)
            if points:
                middle, best = float(np.mean(points)), plan is best_of(plans, task)
                panel.plot([middle] * 2, [y - 0.3, y + 0.3], color=INK, lw=2)
                panel.annotate(f"{middle:.1f}" + best * " best", (1, y), xytext=(4, 0), va="center",
                               xycoords=("axes fraction", "data"), textcoords="offset points",
                               fontsize=8, color=INK,
                               fontweight="bold" if best else "normal")  # fmt: skip
        panel.set_title(task, fontsize=10, color=INK, loc="left")
        style_axes(panel, grid="x")
        panel.spines["left"].set_visible(False)
        panel.xaxis.set_major_locator(MaxNLocator(4))
    for panel, limits in zip(every, _limits(plans, panels), strict=False):
        panel.set_xlim(limits)
    for panel in every[len(panels) :]:
        panel.set_axis_off()
    labels = [p.title + (f"\n({p.mark})" if p.mark else "") for p in plans]
    every[0].set_yticks(range(len(plans)), labels, fontsize=9)
    every[0].set_ylim(len(plans) - 0.4, -0.6)
    for panel in every:
        panel.tick_params(axis="y", length=0, labelsize=9)
    figure.supxlabel(
        "points, equally wide in all panels; a dot per seed, a bar at their mean",
        fontsize=9,
        color=FAINT,
    )
    set_figure_title(figure, title)
    return figure


def best_of(plans: Sequence[CandidateScores], task: str) -> CandidateScores:
    """The plan with the highest mean on a task, or over the tasks."""
    return max(plans, key=lambda plan: np.mean(_points(plan, task) or [-np.inf]))


def _points(plan: CandidateScores, task: str) -> list[float]:
    return [score for score in plan.scores.get(task, plan.overall) if score is not None]


def _limits(
    plans: Sequence[CandidateScores], tasks: Sequence[str]
) -> list[tuple[float, float] | None]:
    """Limits of the axes: equally wide, so that differences can be compared between panels."""
    scores = [[score for plan in plans for score in _points(plan, task)] for task in tasks]
    room = 1.2 * max((max(each) - min(each) for each in scores if each), default=0.0) or 2.0
    middles = [(max(each) + min(each)) / 2 if each else None for each in scores]
    return [None if m is None else (m - room / 2, m + room / 2) for m in middles]


def cost(stages: Sequence[StageCost], title: str = "What the search cost") -> Figure:
    """Draw the fits of every stage (solid) and of the paper's protocol (pale), with their duration.

    Raises:
        ValueError: there is no stage.
    """
    if not stages:
        raise ValueError("there is no cost to draw: no stage has started")
    figure = new_figure(8.0, 1.25 + 0.58 * len(stages))
    axes = figure.add_subplot()
    longest = max(max(s.fits + s.reused, s.paper_fits) for s in stages) or 1
    for y, stage in enumerate(stages):
        axes.barh(y, stage.paper_fits, height=0.62, color=MISSING)
        axes.barh(y, stage.fits, height=0.36, color=CHOSEN)
        axes.barh(y, stage.reused, height=0.36, left=stage.fits, color=ACTIVE, alpha=0.75)
        end = max(stage.fits + stage.reused, stage.paper_fits) + 0.015 * longest
        reused = f", {stage.reused:,} reused" if stage.reused else ""
        lines = [f"{stage.fits:,} fits, {readable_duration(stage.seconds)}{reused}"]
        if stage.paper_fits:
            lines += [f"paper: {stage.paper_fits:,} fits, {readable_duration(stage.paper_seconds)}"]
        axes.annotate("\n".join(lines), (end, y), va="center", fontsize=7.5, color=INK)
    style_axes(axes, grid="x")
    axes.spines["left"].set_visible(False)
    axes.set_yticks(range(len(stages)), [s.stage for s in stages], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.38 * longest)
    axes.set_ylim(len(stages) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    handles = [
        axes.barh(0, 0, color=CHOSEN, label="done"),
        axes.barh(0, 0, color=ACTIVE, alpha=0.75, label="reused from an earlier stage"),
        axes.barh(0, 0, color=MISSING, label="the paper's protocol: 100 designs for each option"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    axes.set_xlabel("fits", fontsize=9, color=FAINT)
    set_figure_title(figure, title)
    return figure
