"""The picture over time shows each reading at its block and step."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.collections import PathCollection, PolyCollection, QuadMesh

from lightning_pelt.reports import figures
from lightning_pelt.reports.gate_history import GateHistory
from lightning_pelt.reports.gates_over_time import gates_over_time

SITES = ("lora.query", "prefix", "adapter")
STEPS = (0, 10, 30, 40)


def value(step, block, index):
    return (step + 10 * block + index + 1) / 100


def history(blocks=3, sites=SITES, closed=()):
    kept = GateHistory()
    for step in STEPS:
        kept.add(
            step,
            {
                f"{b:02d}/{s}": 0.0 if (step, f"{b:02d}/{s}") in closed else value(step, b, i)
                for b in range(blocks)
                for i, s in enumerate(sites)
            },
        )
    return kept


def meshes(figure):
    """The axes that have a heat map, without the bar of colours."""
    found = [(axes, c) for axes in figure.axes for c in axes.collections if isinstance(c, QuadMesh)]
    return [(axes, mesh) for axes, mesh in found if mesh.get_clim() == (0, 1) and axes.get_xlabel()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_reading_is_a_cell():
    figure = gates_over_time(history())
    found = meshes(figure)
    assert len(found) == len(SITES)
    for index, (axes, mesh) in enumerate(found):
        expected = [[value(s, b, index) for s in STEPS] for b in range(3)]
        np.testing.assert_allclose(mesh.get_array(), expected, atol=5e-4)
        assert mesh.get_coordinates()[0, :, 0].tolist() == [0, 5, 20, 35, 40]
        assert axes.get_ylim() == (3, 0), "the input is at the top"
        assert axes.get_xlabel() == "optimizer step"
    assert [t.get_text() for t in found[0][0].get_yticklabels()] == ["00", "01", "02"]
    assert found[0][0].get_ylabel() == "block, input at the top"
    assert legend(figure) == ["mean over blocks", "lowest to highest block"]


def test_the_curve_is_the_mean_over_blocks_and_the_band_their_range():
    figure = gates_over_time(history())
    for index, site in enumerate(SITES):
        (axes,) = [each for each in figure.axes if each.get_title() == site]
        (line,) = axes.get_lines()
        assert line.get_xdata().tolist() == [*STEPS]
        expected = [np.mean([value(s, b, index) for b in range(3)]) for s in STEPS]
        np.testing.assert_allclose(line.get_ydata(), expected, atol=5e-4)
        (band,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
        edges = band.get_paths()[0].vertices[:, 1]
        assert edges.min() == pytest.approx(value(0, 0, index), abs=5e-4)
        assert edges.max() == pytest.approx(value(40, 2, index), abs=5e-4)


def test_closed_gates_are_hatched_and_pruned_ones_crossed():
    closed = {(30, "01/adapter"), (40, "01/adapter"), (0, "00/adapter")}
    figure = gates_over_time(history(closed=closed), pruned=["01/adapter"])
    axes, mesh = meshes(figure)[SITES.index("adapter")]
    assert np.argwhere(np.ma.getmaskarray(mesh.get_array())).tolist() == [[0, 0], [1, 2], [1, 3]]
    hatched = [c for c in axes.collections if c.get_hatch()]
    boxes = [path.get_extents() for each in hatched for path in each.get_paths()]
    assert sorted((box.x0, box.x1, box.y0, box.y1) for box in boxes) == [
        (0, 5, 0, 1),
        (20, 40, 1, 2),
    ]
    (cross,) = [c for c in axes.collections if isinstance(c, PathCollection)]
    assert cross.get_offsets().tolist() == [[30, 1.5]]
    assert legend(figure)[2:] == ["switched off", "pruned"]


def test_sites_that_a_block_lacks_are_empty():
    kept = GateHistory()
    for step in (0, 1):
        kept.add(step, {"00/lora": 0.5, "01/lora": 0.5, "01/prefix": 0.25})
    _, mesh = meshes(gates_over_time(kept))[1]
    assert np.ma.getmaskarray(mesh.get_array()).tolist() == [[True, True], [False, False]]


@pytest.mark.slow
@pytest.mark.parametrize("blocks, sites", [(1, 1), (6, 4), (48, 6)])
def test_names_do_not_touch(blocks, sites):
    names = [f"lora.{i}" for i in range(sites)]
    figure = gates_over_time(history(blocks, names))
    height, width, _ = figures.pixels(figure).shape
    assert height < 3600
    assert width < 1800
    first = meshes(figure)[0][0]
    boxes = [t.get_window_extent() for t in first.get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))
    label = first.yaxis.label.get_window_extent()
    assert not any(label.overlaps(box) for box in boxes)
    tops = [axes.title for axes in figure.axes if axes.get_title()]
    assert [title.get_text() for title in tops] == names


@pytest.mark.parametrize("readings", [0, 1])
def test_it_needs_two_readings(readings):
    kept = GateHistory()
    for step in range(readings):
        kept.add(step, {"00/lora": 0.5})
    with pytest.raises(ValueError, match=f"there are {readings} readings"):
        gates_over_time(kept)
