"""Figures of plans show the numbers of the breakdown, and nothing overlaps."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from reports.plan_models import small_bert, small_t5

from lightning_pelt import S4, Compacter, Design, FullFineTuning, LoRA, Prefix, UniPELT, attach
from lightning_pelt.reports import figures as plots
from lightning_pelt.reports.plan_breakdown import Breakdown, break_down
from lightning_pelt.reports.plan_figure import SHARED_ROWS, plan_picture


@pytest.fixture(scope="module")
def deep() -> Breakdown:
    """24 blocks of two stacks, of four groups."""
    return break_down(attach(small_t5(12), S4(0.3)))


def squares(figure: Figure) -> dict[tuple[float, float], float]:
    cells = figure.axes[0]
    drawn = [each for each in cells.collections if len(each.get_offsets())]
    return {tuple(each.get_offsets()[0]): each.get_sizes()[0] for each in drawn}


def test_areas_are_parameters_and_the_legend_says_how_many(deep: Breakdown) -> None:
    figure = plan_picture(deep)
    names = list(deep.methods)
    expected = {
        (names.index(name), y): method.parameters
        for y, row in enumerate(deep.rows)  # the input is at the top
        for name, method in row.methods.items()
    }
    found = squares(figure)
    assert found.keys() == expected.keys()
    scale = {round(area / expected[position], 9) for position, area in found.items()}
    assert len(scale) == 1
    legend = figure.legends[0]
    handles = dict(
        zip([t.get_text() for t in legend.get_texts()], legend.legend_handles, strict=True)
    )
    numbers = [label for label in handles if label[0].isdigit()]
    assert len(numbers) == 3
    for label in numbers:
        area = handles[label].get_sizes()[0]
        assert area / int(label.replace(",", "")) == pytest.approx(*scale)


def test_the_area_of_what_blocks_share_has_the_same_scale() -> None:
    found = break_down(attach(small_bert(), UniPELT([Prefix(), LoRA()])))
    figure = plan_picture(found)
    drawn = squares(figure)
    shared, block = found.outside["prefix"], found.rows[0].methods["lora"].parameters
    middle = len(found.rows) + SHARED_ROWS / 2 - 0.5
    assert drawn[0, middle] / drawn[1, 0] == pytest.approx(shared / block)
    low, high = figure.axes[0].get_ylim()
    assert low > high  # the input is at the top


@pytest.mark.slow
def test_bars_are_the_blocks_totals_and_ticks_their_shares(deep: Breakdown) -> None:
    bars = plan_picture(deep).axes[1]
    widths = [patch.get_width() for patch in bars.patches if patch.get_width() > 1]
    assert widths[: len(deep.rows)] == [row.total for row in deep.rows]
    ticks = [tuple(tick) for each in bars.collections for tick in each.get_offsets()]
    assert ticks == [(row.share, y) for y, row in enumerate(deep.rows)]


def boxes(figure: Figure, rows: int) -> list[Bbox]:
    """The boxes of all texts and squares."""
    cells, _ = figure.axes
    words = [text for axes in figure.axes for text in axes.texts]
    words += [*cells.get_xticklabels(), *cells.get_yticklabels()]
    words += [*figure.legends[0].get_texts(), figure.legends[0].get_title()]
    found = [text.get_window_extent() for text in words if text.get_text()]
    assert len(found) > 2 * rows
    for position, area in squares(figure).items():
        x, y = cells.transData.transform(position)
        half = area**0.5 / 2 * figure.dpi / 72
        found += [Bbox([[x - half, y - half], [x + half, y + half]])] if half else []
    return found


@pytest.mark.slow
def test_nothing_overlaps(deep: Breakdown) -> None:
    shared = break_down(attach(small_bert(48), UniPELT([Prefix(), Compacter(bottleneck=4)])))
    flat = break_down(attach(small_t5(4), S4(0.3, stacks="per_stack")))
    narrow = break_down(attach(small_t5(), UniPELT([Compacter(bottleneck=4)], norms=True)))
    for found in (deep, shared, flat, replace(narrow, backbone=1_234_567_890)):
        figure = plan_picture(found)
        height, width, _ = plots.pixels(figure).shape
        drawn = boxes(figure, len(found.rows))
        assert not [pair for pair in combinations(drawn, 2) if pair[0].overlaps(pair[1])]
        page = Bbox([[0, 0], [width, height]])
        assert all(page.containsx(b.x0) and page.containsx(b.x1) for b in drawn)
        assert all(page.containsy(b.y0) and page.containsy(b.y1) for b in drawn)


def test_a_plan_without_methods_is_refused() -> None:
    found = break_down(attach(small_bert(), FullFineTuning()))
    with pytest.raises(ValueError, match="the plan has no method"):
        plan_picture(found)
    empty = replace(found, methods=("lora",))  # a method that no block has
    assert plan_picture(empty).axes


def test_a_block_under_budget_is_marked() -> None:
    """Shares of 120: B always has 112."""
    found = break_down(attach(small_bert(), Design(["B", "AP"], 240, pattern="uniform")))
    drawn = [text.get_text() for axes in plan_picture(found).axes for text in axes.texts]
    assert "112  93%, under budget" in drawn
