"""The page is one file that loads nothing, whatever the names in the run are."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from reports.run_files import COUNTED, HOSTILE, gated, log

from lightning_pelt.reports.run_data import Run, read_run
from lightning_pelt.reports.run_page import page_data, run_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (  # nothing but the page is loaded
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--virtual-time-budget=2000",
    "--dump-dom",
)
# What a user does: move the slider, ask for a log scale, read a chart with the keyboard.
CELLS = """<script>
const figure = document.querySelector("[data-gate]").closest("figure");
const press = () => {
  const map = figure.querySelector("[data-gate]").ownerSVGElement;
  for (const key of ["ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight"])
    map.dispatchEvent(new KeyboardEvent("keydown", { key }));
};
press();
// The page draws once more when it knows its width.
new MutationObserver(press).observe(figure, { childList: true, subtree: true });
</script>"""
ACTIONS = """<script>
addEventListener("load", () => {
  const slider = document.getElementById("step");
  slider.value = 0;
  slider.dispatchEvent(new Event("input"));
  const figure = document.querySelector('[data-section="curves"] figure');
  figure.querySelector("input").click();
  const chart = figure.querySelector(".plots svg");
  chart.focus();
  for (const key of ["Home", "ArrowRight"])
    chart.dispatchEvent(new KeyboardEvent("keydown", { key }));
});
</script>"""


class Page(HTMLParser):
    """Texts and elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.of: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        self.of.setdefault(self.elements[-1][0] if self.elements else "", []).append(data)


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture
def first(tmp_path: Path) -> Run:
    return read_run(str(log(tmp_path / "version_0", gated([0, 50, 100]), COUNTED)))


@pytest.fixture
def second(tmp_path: Path) -> Run:
    """Another plan, no gates, no counts, hostile names everywhere, and values that are none."""
    rows = [(step, {f"val/{HOSTILE}": float(step), HOSTILE: float("nan")}) for step in (0, 200)]
    settings = {"lr": 0.1, HOSTILE: HOSTILE, "backbone": HOSTILE}
    return read_run(str(log(tmp_path / "<b>run" / "version_1", rows, settings)))


def test_a_page_loads_nothing(first: Run) -> None:
    page = run_page([first])
    elements = Page(page).elements
    for tag, attributes in elements:
        assert tag not in ("iframe", "object", "embed", "base", "img")
        for name in ("src", "href", "action", "srcset"):
            assert re.match(r"#\w+$|data:,$", attributes.get(name) or "#a"), (tag, attributes)
    assert not re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|innerHTML|import\(", page)
    assert re.findall(r"https?://\S+", page) == ['http://www.w3.org/2000/svg",'][:1]


def test_the_policy_allows_the_script_of_the_page_alone(first: Run) -> None:
    page = run_page([first])
    policy = next(a["content"] for _, a in Page(page).elements if a.get("http-equiv")) or ""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")


def test_hostile_names_stay_text(first: Run, second: Run) -> None:
    page = run_page([second, first])
    parsed = Page(page)
    tags = [tag for tag, _ in parsed.elements]
    assert tags.count("script") == 2 and "img" not in tags
    assert HOSTILE in parsed.texts  # the name of a setting, whole
    assert HOSTILE in [chart["title"] for chart in data_of(page)["charts"]]


def test_what_is_shown_without_a_script(first: Run) -> None:
    texts = Page(run_page([first])).texts
    assert {"train/loss", "1", "step 100", "6,000", "0.25 %", "6,342 parameters", "2.0 KiB"} <= {
        *texts
    }


def test_the_bars_have_the_scale_of_the_largest(first: Run) -> None:
    widths = [a["style"] for tag, a in Page(run_page([first])).elements if tag == "i"]
    shares = [300, 300, 6000, 60, 12, 12]  # of LoRA, the prefix and the head: trained, deployed
    assert widths == [f"width:{100 * n / 6000:.3f}%" for n in shares]


def test_two_runs_share_charts_colours_and_grid(first: Run, second: Run, tmp_path: Path) -> None:
    rows = [(step, {"val/loss": 1.0, "train/loss": 1.0 + step}) for step in (0, 10)]
    third = read_run(str(log(tmp_path / "version_2", rows)))
    data = page_data([first, third])
    (loss,) = [chart for chart in data["charts"] if chart["title"] == "loss"]
    colours = [{line["label"]: line["colour"] for line in lines} for lines in loss["runs"]]
    assert colours == [{"train": 0}, {"train": 0, "val": 1}]
    assert (data["blocks"], data["sites"]) == (["00", "01"], ["lora.query", "prefix"])
    assert data["runs"][1]["gates"] == {"steps": [], "values": [], "total": 0}


def test_equal_short_names_are_written_out(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        log(tmp_path / folder / "quick" / "version_0", gated([0, 1]))
    runs = [read_run(str(tmp_path / folder)) for folder in ("a", "b")]
    assert [run["name"] for run in page_data(runs)["runs"]] == [run.location for run in runs]


def test_settings_that_differ(first: Run, second: Run) -> None:
    names = [a.get("id") for _, a in Page(run_page([first, second])).elements]
    assert "own-steps" in names
    texts = Page(run_page([first, first])).texts
    assert any("None: both runs have the same settings." in text for text in texts)


def test_an_empty_run_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("")
    page = " ".join(Page(run_page([read_run(str(tmp_path))])).texts)
    for words in ("no values yet", "No gates were logged", "ParameterCount", "no hparams.yaml"):
        assert words in page


def test_what_is_left_out_of_long_runs_is_said(tmp_path: Path) -> None:
    lines = ["step,train/loss,gate/0/a", *(f"{step},1,0.5" for step in range(1000)), ""]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    page = run_page([read_run(str(tmp_path))])
    assert "up to 1,000 values" in page
    assert "Of 1,000 steps with gates, 200 are drawn." in page


def in_browser(page: str, folder: Path) -> Page:
    """The page after its scripts have run."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    file = folder / "page.html"
    file.write_text(page, encoding="utf-8")
    command = [browser, *FLAGS, f"--user-data-dir={folder / 'browser'}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Page(done.stdout)


@pytest.mark.slow
def test_a_browser_draws_the_page(first: Run, second: Run, tmp_path: Path) -> None:
    page = in_browser(run_page([first, second]), tmp_path)
    charts = page_data([first, second])["charts"]
    # The heat map, a chart for each of two sites, and the others.
    assert page.elements[0][1]["data-drawn"] == str(1 + 2 + len(charts))
    cells = [a["data-gate"] for _, a in page.elements if "data-gate" in a]
    assert cells == [f"block 0{b}, {site}" for b in (0, 1) for site in ("lora.query", "prefix")]
    slider = next(a for _, a in page.elements if a.get("type") == "range")
    assert (slider["min"], slider["max"]) == ("0", "2")
    assert slider["aria-valuetext"] == "step 100 of 100"
    assert {"0.60", "0.40"} <= {*page.texts}  # 0.5 +- 100 / 1000
    paths = [a["d"] or "" for tag, a in page.elements if tag == "path"]
    assert paths and not any("NaN" in path for path in paths)
    assert "img" not in [tag for tag, _ in page.elements]


@pytest.mark.slow
def test_the_slider_and_the_keyboard(first: Run, tmp_path: Path) -> None:
    allowed = re.sub(r"<meta http-equiv[^>]+>", "", run_page([first]))
    page = in_browser(allowed.replace("</body>", f"{ACTIONS}</body>"), tmp_path)
    slider = next(a for _, a in page.elements if a.get("type") == "range")
    assert slider["aria-valuetext"] == "step 0 of 100, epoch 0"
    assert {"0.50"} <= {*page.texts} and "0.60" not in page.texts
    text = " ".join(page.texts)
    assert "step 50 , epoch 1 train:  1.5" in text  # what floats at the second step


@pytest.mark.slow
def test_the_keyboard_reads_the_cells_of_the_heat_map(first: Run, tmp_path: Path) -> None:
    allowed = re.sub(r"<meta http-equiv[^>]+>", "", run_page([first]))
    page = in_browser(allowed.replace("</body>", f"{CELLS}</body>"), tmp_path)
    (marked,) = [a["data-gate"] for _, a in page.elements if a.get("class") == "at"]
    assert marked == "block 01, prefix"
    assert "block 01, prefix" in [*page.texts], "what floats names the cell"
    assert any(text.endswith("at step 100") for text in page.texts)
