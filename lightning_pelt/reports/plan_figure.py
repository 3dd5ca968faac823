"""A plan as a figure: a row per block, input at the top, a column per method."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from lightning_pelt.reports.figures import (
    FAINT,
    GATES,
    INK,
    MISSING,
    PAPER,
    compact_number,
    new_figure,
    set_figure_title,
    style_axes,
)
from lightning_pelt.reports.plan_breakdown import BlockRow, Breakdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILL = GATES(0.35)
POINTS_PER_INCH = 72
SHARED_ROWS = 3  # height of the row of what blocks share, in blocks: an MLP is larger than they are
FILLED = 0.78  # of the height of a row, that the largest square takes


def plan_picture(found: Breakdown, title: str = "Plan") -> Figure:
    """A grid of blocks and methods with squares whose areas are numbers of parameters.

    The last row shows what several blocks share, such as the MLP of a prefix. Bars beside the grid
    show the total of each block, with a tick at a design's share of the budget. The total of each
    method is above the grid.

    Args:
        found: the plan on a model.
        title: of the figure.

    Raises:
        ValueError: the plan has no method.
    """
    if not found.methods:
        raise ValueError("there is nothing to draw: the plan has no method")
    pitch = 0.42 if len(found.rows) <= 16 else 0.3  # inches per block
    width, above = 1.05 * len(found.methods), 1.9
    height = len(found.rows) + (SHARED_ROWS if any(found.outside.values()) else 0)
    figure = new_figure(5.2 + width, above + pitch * height)
    cells, bars = figure.subplots(1, 2, sharey=True, width_ratios=[width, 2.6])
    methods = [method for row in found.rows for method in row.methods.values()]
    largest = max((method.parameters for method in methods), default=0) or 1
    shared = max(found.outside.values(), default=0) / SHARED_ROWS**2
    scale = (FILLED * pitch * POINTS_PER_INCH) ** 2 / max(largest, shared)
    _squares(cells, found, scale)
    _totals(bars, found)
    for axes in (cells, bars):
        _bands(axes, found.rows, named=axes is bars)
    cells.set_ylim(height - 0.5, -0.5)
    shown = max(largest, shared)
    for size in dict.fromkeys(_round(shown * part) for part in (1 / 16, 1 / 4, 1)):
        cells.scatter([], [], s=scale * size, marker="s", color=FILL, lw=0, label=f"{size:,}")
    _legend(figure, (cells, bars), _note(found))
    set_figure_title(figure, title)
    return figure


def _legend(figure: Figure, panels: Iterable[Axes], note: str) -> None:
    handles = [handle for axes in panels for handle in axes.get_legend_handles_labels()[0]]
    legend = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        fontsize=8,
        labelcolor=INK,
        frameon=False,
        title=f"{note}\n",  # leaves room for the squares below
        title_fontsize=8,
        handletextpad=0.8,
        columnspacing=1.8,
    )
    legend.get_title().set_color(FAINT)


def _squares(axes: Axes, found: Breakdown, scale: float) -> None:
    names = list(found.methods)
    for y, row in enumerate(found.rows):
        for name, method in row.methods.items():
            side = math.sqrt(scale * method.parameters)
            x = names.index(name)
            axes.scatter(x, y, s=side**2, marker="s", color=FILL, lw=0, zorder=3)
            axes.annotate(method.size, (x, y), (side / 2 + 3, 0), textcoords="offset points",
                          va="center", fontsize=7.5, color=INK, zorder=4)  # fmt: skip
    middle = len(found.rows) + SHARED_ROWS / 2 - 0.5
    for name, shared in found.outside.items():
        if shared:
            x = names.index(name)
            axes.scatter(x, middle, s=scale * shared, marker="s", color=FILL, lw=0, zorder=3)
            beside = (math.sqrt(scale * shared) / 2 + 3, 0)
            axes.annotate(_brief(shared), (x, middle), beside, textcoords="offset points",
                          va="center", fontsize=7.5, color=INK, zorder=4)  # fmt: skip
    style_axes(axes)
    axes.grid(False)
    labels = [f"{name}\n{total:,}" for name, total in found.totals.items()]
    axes.set_xticks(range(len(names)), labels, fontsize=8.5)
    axes.xaxis.tick_top()
    blocks: dict[float, str] = {
        y: f"{row.block.stack} {row.block.number}" for y, row in enumerate(found.rows)
    }
    if any(found.outside.values()):
        blocks[middle] = "shared\nby blocks"
    axes.set_yticks(list(blocks), list(blocks.values()))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlim(-0.5, len(names) - 0.35)
    axes.set_ylabel("block, input at the top", fontsize=8.5, color=FAINT)


def _totals(axes: Axes, found: Breakdown) -> None:
    """A bar per block, and a tick at its share of the budget."""
    longest = max(max(row.total, row.share or 0) for row in found.rows) or 1
    for y, row in enumerate(found.rows):
        axes.barh(y, row.total, height=0.42, color=FILL, alpha=0.45, zorder=3)
        filled = "" if row.filled is None else f"  {row.filled:.0%}"
        mark = ", under budget" if row.under_budget else ""
        end = max(row.total, row.share or 0) + 0.03 * longest
        axes.annotate(f"{row.total:,}{filled}{mark}", (end, y), va="center", fontsize=7.5,
                      color=INK, zorder=4)  # fmt: skip
    shares = [(row.share, y) for y, row in enumerate(found.rows) if row.share is not None]
    if shares:
        ticks, heights = zip(*shares, strict=True)
        axes.scatter(ticks, heights, s=80, marker="|", color=INK, lw=1.2, zorder=5,
                     label="share of the budget")  # fmt: skip
    whole = sum(found.totals.values())
    outside = sum(found.outside.values())
    if outside:
        middle = len(found.rows) + SHARED_ROWS / 2 - 0.5
        axes.annotate(f"{outside:,}, {outside / whole:.0%} of all", (0, middle), va="center",
                      fontsize=7.5, color=INK)  # fmt: skip
    axes.set_title(f"all methods\n{whole:,}", fontsize=8.5, color=INK, loc="left")
    axes.set_xlim(0, 1.75 * longest)
    axes.set_axis_off()


def _bands(axes: Axes, rows: tuple[BlockRow, ...], *, named: bool) -> None:
    """Shade the groups and stacks alternately, and name the groups at the right."""
    numbered = groupby(enumerate(rows), lambda each: (each[1].group, each[1].block.stack))
    runs = [(key, list(run)) for (key, _), run in numbered]
    several = len({key for key, _ in runs}) > 1
    for index, (key, run) in enumerate(runs):
        low, high = run[0][0] - 0.5, run[-1][0] + 0.5
        axes.axhspan(low, high, color=MISSING if index % 2 else PAPER, alpha=0.6, lw=0, zorder=0)
        if index:
            axes.axhline(low, color=FAINT, lw=0.7, zorder=1)
        if named and several:
            text = "untuned" if key == "-" else f"group {key}"
            axes.annotate(text, (1, (low + high) / 2), (4, 0), xycoords=axes.get_yaxis_transform(),
                          textcoords="offset points", va="center", fontsize=8,
                          color=FAINT)  # fmt: skip


def _note(found: Breakdown) -> str:
    """What the areas show, and which parameters are trained besides the methods."""
    whole, gates = sum(found.totals.values()), sum(found.gates.values())
    besides = [
        f"{number:,} in {what}"
        for what, number in (("gates", gates), ("norms", found.norms))
        if number
    ]
    return (
        f"area: trained parameters; in total {whole / found.backbone:.3%} of the backbone's "
        f"{found.backbone:,}" + (f"\nalso trained: {' and '.join(besides)}" if besides else "")
    )


def _brief(number: int) -> str:
    """A number with three digits and its unit."""
    digits = max(0, math.floor(math.log10(number)) - 2)
    return compact_number(round(number, -digits))


def _round(number: float) -> int:
    """The largest of 1, 2 or 5 times a power of ten that is not above ``number``."""
    power = 10 ** math.floor(math.log10(max(number, 1)))
    return int(next(step * power for step in (5, 2, 1) if step * power <= max(number, 1)))
