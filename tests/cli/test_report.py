"""``lightning-pelt report``: which file it writes, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import fsspec
import pytest
from reports.run_files import COUNTED, gated, log

from lightning_pelt.cli.main import script
from lightning_pelt.cli.report import report


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log(tmp_path / "runs" / "quick" / "version_0", gated([0, 50]), COUNTED)
    log(tmp_path / "runs" / "quick" / "version_1", gated([0, 90]), COUNTED)


def test_the_report_is_in_the_folder_of_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-pelt", "report", "runs/quick"])
    with pytest.raises(SystemExit) as end:
        script()
    assert end.value.code == 0
    folder = Path("runs/quick/version_1").resolve()
    assert f"run: {folder}\nreport: {folder / 'report.html'}\n" in capsys.readouterr().out
    assert "<title>quick/version_1: report</title>" in (folder / "report.html").read_text()


def test_two_runs_and_a_file() -> None:
    assert report("runs/quick/version_0", "runs/quick", out="new/both.html") == "new/both.html"
    page = Path("new/both.html").read_text()
    assert "quick/version_0 and quick/version_1: report" in page
    assert report("runs/quick/version_0", "runs/quick").endswith("version_0/comparison.html")


def test_a_second_report_replaces_the_first() -> None:
    file = Path(report("runs/quick"))
    log(Path("runs/quick/version_1b"), gated([0]))
    file.write_text("old")
    assert Path(report("runs/quick/version_1")) == file
    assert file.read_text().startswith("<!doctype html>")


def test_a_url() -> None:
    assert report("runs/quick", out="memory://reports/a.html") == "memory://reports/a.html"
    with fsspec.open("memory://reports/a.html", "rt") as file:
        assert file.read().endswith("</html>")


def test_the_report_of_a_run_at_a_url_is_there() -> None:
    with fsspec.open("memory://far/version_0/metrics.csv", "wt") as file:
        file.write("step,val/loss\n1,2\n")
    assert report("memory://far") == "memory:///far/version_0/report.html"
    assert fsspec.filesystem("memory").exists("/far/version_0/report.html")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs/quik"], "did you mean 'runs/quick'"),
        (["runs/quick", "--out=metrics.csv"], "--out metrics.csv must be an HTML file"),
        (["runs/quick", "runs/quick/version_1"], "are the same run"),
        (["runs/quick", "--ot=a.html"], "unknown option 'ot': did you mean 'out'?"),
        ([], "run is required"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-pelt", "report", *arguments])
    with pytest.raises(SystemExit) as end:
        script()
    assert end.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("lightning-pelt report: ") and words in last
    assert not list(Path().rglob("*.html"))
