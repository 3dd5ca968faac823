"""Pictures of gates and parameters: pure functions from numbers to matplotlib figures.

Figures are built without pyplot, so that drawing neither opens a window, nor needs a display, nor
touches anybody's global state.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GATES: Colormap = colormaps["viridis"]  # perceptually uniform, and fixed: 0 is closed, 1 is open
INK, FAINT, PAPER, MISSING = "#1f2430", "#8a90a0", "#ffffff", "#eceef2"


class Counts(Protocol):
    """Numbers of parameters of one method."""

    @property
    def trained(self) -> int: ...
    @property
    def deployed(self) -> int: ...
    @property
    def gates(self) -> int: ...


def grid(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The rows and columns of gates named ``"<block>/<site>"``, each in order of appearance."""
    pairs = [name.rpartition("/") for name in names]
    return list(dict.fromkeys(p[0] for p in pairs)), list(dict.fromkeys(p[2] for p in pairs))


def gate_heatmap(gates: Mapping[str, float], title: str = "Mean gate") -> Figure:
    """Gates as a grid: blocks from the input down, sites across, the value in every cell.

    Args:
        gates: mean gate in [0, 1] by name, ``"<block>/<site>"``; sites that a block lacks stay
            grey.
        title: what the numbers are.

    Raises:
        ValueError: if there are no gates.
    """
    if not gates:
        raise ValueError("there is no gate to draw: the mapping of gates is empty")
    blocks, sites = grid(gates)
    values = np.array([[gates.get(f"{b}/{s}", np.nan) for s in sites] for b in blocks])
    row, text = (0.34, 9.0) if len(blocks) <= 16 else (0.25, 7.5)  # inches, points
    labels = [site.replace(".", ".\n") if len(site) > 14 else site for site in sites]
    column = max(0.95, *(0.085 * len(line) for label in labels for line in label.split("\n")))
    margin = 1.4 + 0.08 * max(map(len, blocks))
    figure, axes = _page(max(margin + column * len(sites), 3.2), 1.35 + row * len(blocks))
    axes.set_facecolor(MISSING)
    axes.pcolormesh(
        np.ma.masked_invalid(values), cmap=GATES, vmin=0, vmax=1, edgecolors=PAPER, linewidth=1.6
    )
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(x + 0.5, y + 0.5, f"{value:.2f}", ha="center", va="center",
                      color=_readable_on(GATES(value)), fontsize=text)  # fmt: skip
    axes.invert_yaxis()
    axes.set_xticks(np.arange(len(sites)) + 0.5, labels, fontsize=9.5)
    axes.set_yticks(np.arange(len(blocks)) + 0.5, blocks, fontsize=text)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, colors=INK)
    axes.set_ylabel("block, input first", fontsize=9, color=FAINT)
    _scale(figure, axes, GATES, Normalize(0, 1), ("closed", "open"))
    _title(figure, title)
    return figure


def gate_trajectories(
    history: Mapping[str, Sequence[tuple[int, float]]], title: str = "Gates while training"
) -> Figure:
    """One panel per site: a thin line per block, coloured by depth, and their mean in bold.

    Args:
        history: ``(step, mean gate)`` in order of steps, by gate name ``"<block>/<site>"``.
        title: what is shown.

    Raises:
        ValueError: if there are no gates.
    """
    if not history:
        raise ValueError("there is no gate to draw: the history is empty")
    blocks, sites = grid(history)
    columns = min(len(sites), 4)
    rows = -(-len(sites) // columns)
    figure = _figure(0.9 + 2.5 * columns, 0.8 + 2.3 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    depth = Normalize(0, max(len(blocks) - 1, 1))
    for panel, site in zip(panels, sites, strict=False):
        lines = {b: history[f"{b}/{site}"] for b in blocks if history.get(f"{b}/{site}")}
        for block, line in lines.items():
            panel.plot(*zip(*line, strict=True), lw=0.9, alpha=0.85,
                       color=GATES(depth(blocks.index(block))))  # fmt: skip
        panel.plot(*_mean(lines.values()), color=INK, lw=2.2, solid_capstyle="round")
        panel.set_title(site, fontsize=10, color=INK, loc="left")
        _quiet(panel)
        panel.set_ylim(0, 1)
        panel.set_yticks([0, 0.5, 1])
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for panel in panels[len(sites) :]:
        panel.set_axis_off()
    figure.supxlabel("optimizer step", fontsize=9, color=FAINT)
    _scale(figure, list(panels), GATES, depth, (f"block {blocks[0]}", f"block {blocks[-1]}"))
    _title(figure, title)
    return figure


def parameter_bars(counts: Mapping[str, Counts], title: str = "Parameters per method") -> Figure:
    """What each method trains (pale), what of it is deployed (solid), and the numbers beside.

    Args:
        counts: objects with ``trained``, ``deployed`` and ``gates`` by method.
        title: what is counted.

    Raises:
        ValueError: if there are no methods.
    """
    if not counts:
        raise ValueError("there is no method to draw: the mapping of counts is empty")
    figure, axes = _page(7.2, 1.0 + 0.62 * len(counts))
    solid = GATES(0.35)
    pale = tuple(1 - 0.3 * (1 - channel) for channel in solid[:3])
    longest = max(max(c.trained, c.deployed) for c in counts.values()) or 1
    for y, counted in enumerate(counts.values()):
        axes.barh(y, counted.trained, height=0.56, color=pale)
        axes.barh(y, counted.deployed, height=0.56, color=solid)
        end = max(counted.trained, counted.deployed) + 0.012 * longest
        axes.annotate(
            f"{counted.trained:,} trained\n{counted.deployed:,} deployed, {counted.gates:,} gates",
            (end, y), va="center", fontsize=8, color=INK, linespacing=1.25)  # fmt: skip
    _quiet(axes, grid="x")
    axes.set_yticks(range(len(counts)), list(counts), fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.42 * longest)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: _short(n)))
    axes.spines["left"].set_visible(False)
    axes.invert_yaxis()
    _title(figure, title)
    return figure


def pixels(figure: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The figure as an image, ``(height, width, 3)``, bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure; a picture that is already there is replaced only by a whole one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=144, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _page(width: float, height: float) -> tuple[Figure, Axes]:
    figure = _figure(width, height)
    axes = figure.add_subplot()
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)


def _quiet(axes: Axes, grid: Literal["both", "x"] = "both") -> None:
    """Only the axes that carry something, and a faint grid."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    axes.grid(True, axis=grid, color=MISSING, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)


def _scale(
    figure: Figure, axes: Any, colours: Colormap, norm: Normalize, ends: tuple[str, str]
) -> None:
    length = min(0.9, 3.0 / figure.get_figheight())  # a long bar says no more than a short one
    bar = figure.colorbar(
        ScalarMappable(norm, colours), ax=axes, shrink=length, aspect=24, anchor=(0, 1), pad=0.02
    )
    bar.outline.set_visible(False)
    bar.set_ticks([norm.vmin or 0, norm.vmax or 1], labels=list(ends))
    bar.ax.tick_params(length=0, labelsize=8, colors=INK)


def _readable_on(colour: tuple[float, float, float, float]) -> str:
    """Dark or white text, by the relative luminance of what it stands on (WCAG 2.2)."""
    channels = np.array(colour[:3])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return PAPER if linear @ (0.2126, 0.7152, 0.0722) < 0.26 else INK


def _mean(lines: Iterable[Sequence[tuple[int, float]]]) -> tuple[list[int], list[float]]:
    at: dict[int, list[float]] = {}
    for line in lines:
        for step, value in line:
            at.setdefault(step, []).append(value)
    steps = sorted(at)
    return steps, [sum(at[step]) / len(at[step]) for step in steps]


def _short(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"
