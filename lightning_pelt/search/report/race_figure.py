"""Figure of a race: the distance of each option from the leader, look by look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from lightning_pelt.reports.figures import (
    FAINT,
    GATES,
    INK,
    new_figure,
    set_figure_title,
    style_axes,
)
from lightning_pelt.search.report.summary import eliminated_after
from lightning_pelt.search.selection.base import ArmStats, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHOSEN, ACTIVE, DROPPED, OTHERS = GATES(0.35), "#c46a1b", FAINT, "#d5d9e2"
TIE = "#f0dfae"  # background of the tie zone
COLUMNS = 5


def race_figure(
    title: str, looks: Sequence[Look], *, winner: str | None = None, tie: float | None = None
) -> Figure:
    """Draw the distance of each option from the leader, look by look, with its interval.

    Overlapping bands cannot be read, so each option has a panel: the winner first, then the options
    that stayed longest. A line ends where its option was dropped. A selection with a single look is
    drawn as one row for each option.

    Args:
        title: title of the figure.
        looks: of the selection.
        winner: if it is known.
        tie: half the width of the zone in which options are equal, in points.

    Raises:
        ValueError: there is no look yet.
    """
    if not looks:
        raise ValueError("there is no race to draw: the selection has no look yet")
    out = eliminated_after(looks)
    order = sorted(
        looks[-1].arms,
        key=lambda s: (s.arm != winner, s.arm in out, -out.get(s.arm, 0), _last(s.behind)),
    )
    arms = [each.arm for each in order]
    if len(looks) == 1:
        return _rows(title, looks[0], arms, winner=winner, tie=tie)
    columns = min(len(arms), COLUMNS)
    rows = -(-len(arms) // columns)
    figure = new_figure(max(1.0 + 2.0 * columns, 4.6), 1.25 + 1.75 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels: list[Axes] = list(grid.ravel())
    lines = {arm: _line(arm, looks, out.get(arm)) for arm in arms}
    for panel, arm in zip(panels, arms, strict=False):
        _zone(panel, tie, vertical=False)
        for other in arms:
            panel.plot(*lines[other][:2], color=OTHERS, lw=0.9, zorder=1)
        _lane(panel, lines[arm], _colour(arm, winner, out))
        state = _state(arm, winner, looks[-1].leader, out)
        state = state if isfinite(lines[arm].middle[-1]) else "diverged"
        panel.set_title(f"{arm}\n", fontsize=9.5, color=INK, loc="left", fontweight="bold", pad=3)
        panel.annotate(state, (0, 1), (0, 4), xycoords="axes fraction", fontsize=7.5,
                       textcoords="offset points", color=_colour(arm, winner, out))  # fmt: skip
        style_axes(panel)
        panel.set_xticks(_ticks([look.blocks for look in looks]))
    for panel in panels[len(arms) :]:
        panel.set_axis_off()
        above = panels[panels.index(panel) - columns]
        above.tick_params(labelbottom=True)
    _limit(panels[0], lines.values(), tie)
    zone = f"; shaded: a tie, within {tie:g} points of the leader" if tie else ""
    figure.supxlabel(f"replicates{zone}", fontsize=9, color=FAINT)
    figure.supylabel("points from the leader, same replicates", fontsize=9, color=FAINT)
    set_figure_title(figure, title)
    return figure


class _Line(NamedTuple):
    blocks: list[int]
    middle: list[float]
    low: list[float]
    high: list[float]
    end: bool  # dropped at its last point


def _line(arm: str, looks: Sequence[Look], end: int | None) -> _Line:
    """An arm minus the leader of each look; ``behind`` is the leader minus the arm."""
    seen: list[tuple[int, ArmStats]] = [
        (look.blocks, each)
        for look in looks
        for each in look.arms
        if each.arm == arm and (end is None or look.blocks <= end)
    ]
    return _Line(
        [blocks for blocks, _ in seen],
        [-each.behind for _, each in seen],
        [-each.high for _, each in seen],
        [-each.low for _, each in seen],
        end is not None,
    )


def _lane(panel: Axes, line: _Line, colour: Any) -> None:
    panel.fill_between(line.blocks, line.low, line.high, color=colour, alpha=0.22, lw=0, zorder=2)
    if len(line.blocks) == 1:  # a band without width would be invisible
        panel.vlines(line.blocks, line.low, line.high, color=colour, alpha=0.45, lw=4, zorder=2)
    panel.plot(line.blocks, line.middle, color=colour, lw=1.8, zorder=3)
    marker = "X" if line.end else "o"
    panel.plot(line.blocks[-1:], line.middle[-1:], marker, color=colour, ms=6, zorder=4)


def _rows(
    title: str, look: Look, arms: Sequence[str], *, winner: str | None, tie: float | None
) -> Figure:
    figure = new_figure(7.2, 1.25 + 0.36 * len(arms))
    axes = figure.add_subplot()
    _zone(axes, tie, vertical=True)
    stats = {s.arm: s for s in look.arms}
    out = eliminated_after([look])
    for y, arm in enumerate(arms):
        s, colour = stats[arm], _colour(arm, winner, out)
        axes.plot([-s.high, -s.low], [y, y], color=colour, alpha=0.45, lw=4)
        axes.plot(-s.behind, y, "X" if arm in out else "o", color=colour, ms=6)
    style_axes(axes, grid="x")
    axes.axvline(0, color=FAINT, lw=0.8, zorder=0)
    axes.spines["left"].set_visible(False)
    lost = {arm: "" if isfinite(stats[arm].behind) else " (diverged)" for arm in arms}
    axes.set_yticks(range(len(arms)), [f"{arm}{lost[arm]}" for arm in arms], fontsize=9)
    for label, arm in zip(axes.get_yticklabels(), arms, strict=True):
        label.set_fontweight("bold" if arm == winner else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel(
        f"points from {look.leader}, {look.blocks} replicates each", fontsize=9, color=FAINT
    )
    set_figure_title(figure, title)
    return figure


def _zone(axes: Axes, tie: float | None, *, vertical: bool) -> None:
    span, line = (axes.axvspan, axes.axvline) if vertical else (axes.axhspan, axes.axhline)
    if tie:
        span(-tie, tie, color=TIE, lw=0, zorder=0)
        for edge in (-tie, tie):
            line(edge, color="#c9a94e", lw=0.8, ls=(0, (3, 2)), zorder=0)
    line(0, color=FAINT, lw=0.8, zorder=0)


def _ticks(blocks: Sequence[int]) -> list[int]:
    """At most four of the looks, including the first and the last."""
    places = np.linspace(0, len(blocks) - 1, min(len(blocks), 4)).round().astype(int)
    return [blocks[i] for i in places]


def _limit(panel: Axes, lines: Iterable[_Line], tie: float | None) -> None:
    """Fit all means and the last intervals; longer early intervals are cut."""
    all_lines = list(lines)
    middles = [y for line in all_lines for y in line.middle if isfinite(y)] or [0.0]
    last = [y for line in all_lines for y in (line.low[-1:] + line.high[-1:]) if isfinite(y)]
    low, high = min([*middles, *last, -(tie or 0)]), max([*middles, *last, tie or 0])
    room = 0.08 * (high - low) or 1.0
    panel.set_ylim(low - room, high + room)


def _colour(arm: str, winner: str | None, out: Mapping[str, int]) -> object:
    return CHOSEN if arm == winner else DROPPED if arm in out else ACTIVE


def _state(arm: str, winner: str | None, leader: str, out: Mapping[str, int]) -> str:
    if arm == winner:
        return "won"
    if arm in out:
        return f"dropped after {out[arm]}"
    return "in the lead" if arm == leader else "no clear difference" if winner else "still in"


def _last(value: float) -> float:
    return value if isfinite(value) else float("inf")
