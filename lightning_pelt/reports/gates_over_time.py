"""The picture of gates over time: for each site, its mean and its blocks by optimizer step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lightning_pelt.reports import figures
from lightning_pelt.reports.figures import FAINT, GATES, INK, MISSING, PAPER
from lightning_pelt.reports.gate_history import CLOSED, GateHistory, closed_for_good

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

ACROSS = 4  # sites beside each other
CURVE = 0.9  # height of the curve above a heat map, in inches
LINE = "#31688e"  # of the colours of the gates, dark enough on paper
HATCH = "/////"


def gates_over_time(
    history: GateHistory, title: str = "Gates over time", *, pruned: Sequence[str] = ()
) -> Figure:
    """For each site a curve, the mean over its blocks, and a heat map of blocks by steps.

    The band of a curve is from the lowest to the highest block. Blocks are from the input at the
    top to the output. Gates that a schedule or pruning has closed are hatched, and a cross marks
    where one was pruned. Sites that a block lacks are grey.

    Args:
        history: two readings or more.
        title: of the figure.
        pruned: names of the gates that are closed permanently.

    Raises:
        ValueError: there are fewer than two readings, or no gates.
    """
    if len(history) < 2 or not history.names:
        raise ValueError(
            f"there are {len(history)} readings of {len(history.names)} gates: a picture over time "
            "needs two readings"
        )
    blocks, sites = figures.grid(history.names)
    row = 0.3 if len(blocks) <= 16 else 0.14  # inches
    across, down = min(ACROSS, len(sites)), math.ceil(len(sites) / ACROSS)
    height = max(row * len(blocks), 1.5)
    margin = 1.5 + 0.08 * max(map(len, blocks))
    figure = figures.new_figure(margin + 2.1 * max(across, 2), 1.25 + down * (CURVE + height + 0.5))
    ratios = [CURVE, height] * down
    panels = figure.subplots(2 * down, across, sharex=True, squeeze=False, height_ratios=ratios)
    crosses = closed_for_good(history, pruned)
    for index in range(down * across):
        top, below = panels[2 * (index // across) :, index % across][:2]
        if index >= len(sites):
            top.set_visible(False)
            below.set_visible(False)
            continue
        values = _of_site(history, sites[index], blocks)
        _curve(top, history.steps, values, title=sites[index], first=index % across == 0)
        _map(below, history.steps, values)
        _crosses(below, [crosses.get(f"{block}/{sites[index]}") for block in blocks])
        _name_blocks(below, blocks, row=height / len(blocks), first=index % across == 0)
        below.tick_params(labelbottom=index + across >= len(sites))
        if index + across >= len(sites):
            below.set_xlabel("optimizer step", fontsize=10, color=INK)
    figures.colour_bar(figure, panels[1::2].reshape(-1).tolist(), fontsize=10)
    _legend(figure, closed=bool((history.values == CLOSED).any()), pruned=bool(crosses))
    figures.set_figure_title(figure, title)
    return figure


def _of_site(history: GateHistory, site: str, blocks: Sequence[str]) -> NDArray[np.float32]:
    """(blocks, readings), NaN for a block that lacks the site."""
    values = history.values
    missing = np.full(len(history), np.nan, dtype=np.float32)
    column = {name: values[:, i] for i, name in enumerate(history.names)}
    return np.stack([column.get(f"{block}/{site}", missing) for block in blocks])


def _curve(
    axes: Axes, steps: Sequence[int], values: NDArray[np.float32], *, title: str, first: bool
) -> None:
    known = np.ma.masked_invalid(values)
    axes.fill_between(steps, known.min(0), known.max(0), color=LINE, alpha=0.22, lw=0)
    axes.plot(steps, known.mean(0), color=LINE, lw=2)
    figures.style_axes(axes)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.tick_params(length=0, labelbottom=False, labelleft=first, labelsize=10)
    axes.set_title(title, fontsize=11, fontweight="bold", color=INK)
    if first:
        axes.set_ylabel("gate", fontsize=10, color=INK)


def _map(axes: Axes, steps: Sequence[int], values: NDArray[np.float32]) -> None:
    """A cell from the middle before a reading to the middle after it."""
    at = np.array(steps, dtype=float)
    edges = np.concatenate([at[:1], (at[1:] + at[:-1]) / 2, at[-1:]])
    rows = np.arange(len(values) + 1)
    axes.set_facecolor(MISSING)
    shown = np.ma.masked_where(~np.isfinite(values) | (values == CLOSED), values)
    axes.pcolormesh(edges, rows, shown, cmap=GATES, vmin=0, vmax=1, rasterized=True)
    for y in np.flatnonzero((values == CLOSED).any(1)):
        closed = np.concatenate([[False], values[y] == CLOSED, [False]]).astype(int)
        starts, ends = (edges[np.flatnonzero(np.diff(closed) == turn)] for turn in (1, -1))
        spans = [*zip(starts, ends - starts, strict=True)]
        axes.broken_barh(
            spans, (float(y), 1.0), facecolor=PAPER, edgecolor=FAINT, hatch=HATCH, lw=0
        )
    axes.hlines(rows[1:-1], at[0], at[-1], color=PAPER, lw=1.2)
    axes.set_ylim(len(values), 0)
    axes.set_xlim(at[0], at[-1])
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, prune="upper"))
    axes.tick_params(length=0, colors=INK, labelsize=10)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _crosses(axes: Axes, steps: Sequence[int | None]) -> None:
    found = [(step, y + 0.5) for y, step in enumerate(steps) if step is not None]
    if found:
        x, y = zip(*found, strict=True)
        axes.scatter(x, y, marker="X", s=60, color=INK, edgecolors=PAPER, lw=0.9, zorder=4,
                     clip_on=False)  # fmt: skip


def _name_blocks(axes: Axes, blocks: Sequence[str], *, row: float, first: bool) -> None:
    every = max(1, math.ceil(0.2 / row))  # names that do not touch
    shown = range(0, len(blocks), every)
    axes.set_yticks([y + 0.5 for y in shown], [blocks[y] for y in shown])
    axes.tick_params(labelleft=first)
    if first:
        axes.set_ylabel("block, input at the top", fontsize=10, color=INK)


def _legend(figure: Figure, *, closed: bool, pruned: bool) -> None:
    """What the line and the band are, and what is hatched and crossed, if anything is."""
    handles: list[Any] = [
        Line2D([], [], color=LINE, lw=2, label="mean over blocks"),
        Patch(facecolor=LINE, alpha=0.22, lw=0, label="lowest to highest block"),
    ]
    if closed:
        hatched = Patch(facecolor=PAPER, edgecolor=FAINT, hatch=HATCH, lw=0, label="switched off")
        handles.append(hatched)
    if pruned:
        cross = {"marker": "X", "markersize": 8, "color": INK, "lw": 0}
        handles.append(Line2D([], [], **cross, label="pruned"))  # type: ignore[arg-type]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=4 if figure.get_figwidth() > 8 else 2,
        fontsize=10,
        labelcolor=INK,
        frameon=False,
    )
