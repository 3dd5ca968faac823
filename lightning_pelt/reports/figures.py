"""The heat map of gates, and the style of all figures: pure functions to matplotlib figures.

Figures are built without pyplot, so that drawing opens no window, needs no display, and changes no
global state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from lightning_pelt.utils.locations import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GATES: Colormap = colormaps["viridis"]  # perceptually uniform: 0 is closed, 1 is open
INK, FAINT, PAPER, MISSING = "#1f2430", "#8a90a0", "#ffffff", "#eceef2"


def grid(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """The rows and columns of gates named ``"<block>/<site>"``, each in order of appearance."""
    pairs = [name.rpartition("/") for name in names]
    return list(dict.fromkeys(p[0] for p in pairs)), list(dict.fromkeys(p[2] for p in pairs))


def gate_heatmap(gates: Mapping[str, float], title: str = "Mean gate") -> Figure:
    """Gates as a grid: a row per block, input first, a column per site, values in the cells.

    Args:
        gates: mean gate in [0, 1] by name, ``"<block>/<site>"``. Sites that a block lacks are grey.
        title: of the figure.

    Raises:
        ValueError: there are no gates.
    """
    if not gates:
        raise ValueError("there is no gate to draw: the mapping of gates is empty")
    blocks, sites = grid(gates)
    values = np.array([[gates.get(f"{b}/{s}", np.nan) for s in sites] for b in blocks])
    row, text = (0.34, 9.0) if len(blocks) <= 16 else (0.25, 7.5)  # inches, points
    labels = [site.replace(".", ".\n") if len(site) > 14 else site for site in sites]
    column = max(0.95, *(0.085 * len(line) for label in labels for line in label.split("\n")))
    margin = 1.4 + 0.08 * max(map(len, blocks))
    figure, axes = _bare_axes(max(margin + column * len(sites), 3.2), 1.35 + row * len(blocks))
    axes.set_facecolor(MISSING)
    axes.pcolormesh(
        np.ma.masked_invalid(values), cmap=GATES, vmin=0, vmax=1, edgecolors=PAPER, linewidth=1.6
    )
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(x + 0.5, y + 0.5, f"{value:.2f}", ha="center", va="center",
                      color=_text_colour(GATES(value)), fontsize=text)  # fmt: skip
    axes.invert_yaxis()
    axes.set_xticks(np.arange(len(sites)) + 0.5, labels, fontsize=9.5)
    axes.set_yticks(np.arange(len(blocks)) + 0.5, blocks, fontsize=text)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, colors=INK)
    axes.set_ylabel("block, input first", fontsize=9, color=FAINT)
    colour_bar(figure, axes)
    set_figure_title(figure, title)
    return figure


def pixels(figure: Figure) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The figure as an image (height, width, 3) of bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: str | Path) -> str | Path:
    """Write the figure atomically; the suffix of ``path``, a path or a URL, is the format."""
    content = BytesIO()
    figure.savefig(content, format=Path(path).suffix.removeprefix(".") or "png")
    write_bytes(path, content.getvalue())
    return path if isinstance(path, str) and "://" in path else Path(path)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure with constrained layout; sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=144, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _bare_axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def set_figure_title(figure: Figure, title: str) -> None:
    """Set the title in the style of all figures."""
    figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)


def style_axes(axes: Axes, grid: Literal["both", "x"] = "both") -> None:
    """Show only the left and the bottom axis, and a faint grid."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    axes.grid(True, axis=grid, color=MISSING, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)


def colour_bar(figure: Figure, axes: Axes | list[Axes], *, fontsize: float = 8) -> None:
    """The colours of the gates, beside ``axes``."""
    length = min(0.9, 3.0 / figure.get_figheight())  # a longer bar shows nothing more
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), GATES),
        ax=axes,
        shrink=length,
        aspect=24,
        anchor=(0, 1),
        pad=0.02,
    )
    bar.outline.set_visible(False)
    bar.set_ticks([0, 1], labels=["closed", "open"])
    bar.ax.tick_params(length=0, labelsize=fontsize, colors=INK)


def _text_colour(colour: tuple[float, float, float, float]) -> str:
    """Dark or white text, by the relative luminance of the background (WCAG 2.2)."""
    channels = np.array(colour[:3])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return PAPER if linear @ (0.2126, 0.7152, 0.0722) < 0.26 else INK


def compact_number(number: float) -> str:
    """``1500`` as ``1.5k``."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return f"{number:g}"
