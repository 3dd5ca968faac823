"""The heat map shows the numbers that it is given."""

from __future__ import annotations

from itertools import pairwise

import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from lightning_pelt.reports import figures as plots

SITES = ["lora.query", "lora.value", "prefix", "adapter"]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("blocks", [6, 48])
@pytest.mark.slow
def test_a_heat_map_shows_every_gate_in_its_cell(blocks):
    gates = {
        f"{b:02d}/{s}": (b * len(SITES) + i) / (blocks * len(SITES))
        for b in range(blocks)
        for i, s in enumerate(SITES)
    }
    figure = plots.gate_heatmap(gates)
    plots.pixels(figure)
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == SITES
    assert [t.get_text() for t in axes.get_yticklabels()] == [f"{b:02d}" for b in range(blocks)]
    for text in axes.texts:
        x, y = text.get_position()
        assert text.get_text() == f"{gates[f'{int(y):02d}/{SITES[int(x)]}']:.2f}"
    assert len(axes.texts) == len(gates)
    assert axes.collections[0].get_clim() == (0, 1)
    first, second = (axes.texts[i].get_window_extent() for i in (0, len(SITES)))
    assert not first.overlaps(second), "numbers of neighbouring blocks must not touch"


def test_column_names_never_overlap():
    names = ["cross_attention.lora.query", "cross_attention.prefix", "adapter", "prefix"]
    figure = plots.gate_heatmap({f"decoder.00/{name}": 0.5 for name in names})
    plots.pixels(figure)
    boxes = [t.get_window_extent() for t in figure.axes[0].get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_a_site_that_a_block_lacks_stays_empty():
    figure = plots.gate_heatmap({"00/lora": 0.2, "01/lora": 0.4, "01/prefix": 0.9})
    assert texts(figure) == ["0.20", "0.40", "0.90"]
    assert figure.axes[0].collections[0].get_array().mask.sum() == 1


def test_numbers_contrast_with_their_cells():
    figure = plots.gate_heatmap({f"{i:02d}/lora": i / 20 for i in range(21)})

    def luminance(colour):
        channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]

    for i, text in enumerate(figure.axes[0].texts):
        paper, ink = luminance(plots.GATES(i / 20)[:3]), luminance(to_rgb(text.get_color()))
        contrast = (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05)
        assert contrast > 3.4, f"{text.get_text()} is hard to read"


def test_a_heat_map_needs_gates():
    with pytest.raises(ValueError, match="empty"):
        plots.gate_heatmap({})


def test_save_is_atomic(tmp_path, monkeypatch):
    figure = plots.gate_heatmap({"00/lora": 0.2})
    path = plots.save(figure, tmp_path / "new" / "gates.png")
    before = path.read_bytes()
    height, width, _ = plots.pixels(figure).shape
    assert imread(path).shape[:2] == (height, width)

    def broken(target, **_):
        target.write(b"incomplete")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", broken)
    with pytest.raises(OSError, match="No space"):
        plots.save(figure, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["gates.png"]
