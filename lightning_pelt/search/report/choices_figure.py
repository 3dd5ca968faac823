"""Figure of the choices: every option of every stage, by name and with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure

from lightning_pelt.reports.figures import (
    FAINT,
    INK,
    PAPER,
    new_figure,
    set_figure_title,
    style_axes,
)
from lightning_pelt.search.report.race_figure import ACTIVE, CHOSEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 6  # options of a stage; the others are counted


class OptionScore(NamedTuple):
    """An option in the figure of choices.

    Attributes:
        name: of the option.
        score: in points: the leader's mean minus the option's distance from the leader.
        low: lower end of the interval of that distance, below the leader's mean; NaN if unknown.
        high: upper end.
        again: mean on new replicates, which no choice was based on; None if there is none.
    """

    name: str
    score: float
    low: float
    high: float
    again: float | None = None


class StageChoice(NamedTuple):
    """A stage in the figure of choices.

    Attributes:
        stage: its name.
        options: in any order.
        chosen: name of the chosen option; None until the stage is settled.
    """

    stage: str
    options: Sequence[OptionScore]
    chosen: str | None


def choices(stages: Sequence[StageChoice], title: str = "What each stage chose") -> Figure:
    """Draw a row for each option, best first, below the name of its stage.

    A point is the score, a bar the interval of the distance from the leader of the stage, and a
    diamond the mean on new replicates. A stage with more than six options shows the best six and
    the chosen one, and counts the others.

    Raises:
        ValueError: there is no stage.
    """
    if not stages:
        raise ValueError("there is no choice to draw: no stage has a score yet")
    rows = [row for stage in stages for row in _rows(stage)]
    figure = new_figure(8.2, 1.4 + 0.27 * len(rows))
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        if row.option is not None:
            _draw(axes, row.option, y, chosen=row.chosen)
    style_axes(axes, grid="x")
    axes.spines["left"].set_visible(False)
    axes.set_yticks(range(len(rows)), [row.text for row in rows], fontsize=8.5)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.heading or row.chosen else "normal")
        label.set_color(CHOSEN if row.chosen else INK if row.heading or row.option else FAINT)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.06)
    axes.set_xlabel(
        "points; stages have different replicates: compare within a stage", fontsize=9, color=FAINT
    )
    handles = [
        axes.scatter([], [], s=44, color=CHOSEN, label="chosen"),
        axes.scatter([], [], s=26, facecolor=PAPER, edgecolor=INK, label="another option"),
        *axes.plot([], [], color=FAINT, lw=3, alpha=0.6, label="interval of the difference"),
        axes.scatter([], [], s=26, marker="D", facecolor=PAPER, edgecolor=ACTIVE,
                     label="on new replicates"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    set_figure_title(figure, title)
    return figure


class _Row(NamedTuple):
    text: str
    option: OptionScore | None = None
    chosen: bool = False
    heading: bool = False


def _rows(stage: StageChoice) -> list[_Row]:
    """The heading of a stage, its best options, and the number of the others."""
    known = sorted((o for o in stage.options if isfinite(o.score)), key=lambda o: -o.score)
    shown = [o for i, o in enumerate(known) if i < SHOWN or o.name == stage.chosen]
    rows = [_Row(stage.stage, heading=True)]
    rows += [_Row(f"{o.name}  {o.score:.1f}", o, chosen=o.name == stage.chosen) for o in shown]
    if left := len(known) - len(shown):
        rows.append(_Row(f"and {left} more, down to {known[-1].score:.1f}"))
    if lost := len(stage.options) - len(known):
        rows.append(_Row(f"{lost} diverged"))
    return rows


def _draw(axes: Axes, option: OptionScore, y: int, *, chosen: bool) -> None:
    colour = CHOSEN if chosen else FAINT
    if isfinite(option.low) and isfinite(option.high) and option.low < option.high:
        axes.plot([option.low, option.high], [y, y], color=colour, lw=3, alpha=0.45, zorder=1)
    if option.again is not None:
        axes.scatter(option.again, y, s=26, marker="D", facecolor=PAPER, edgecolor=ACTIVE, zorder=2)
    axes.scatter(option.score, y, s=44 if chosen else 26, zorder=3,
                 facecolor=CHOSEN if chosen else PAPER,
                 edgecolor=CHOSEN if chosen else INK)  # fmt: skip
