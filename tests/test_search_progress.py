"""A search can be watched: on a terminal, in a log, and in Weights & Biases."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import simulated
from matplotlib.figure import Figure

from lightning_pelt.search.cell import Outcome
from lightning_pelt.search.course import Walk
from lightning_pelt.search.ledger import Counts
from lightning_pelt.search.parts import Wandb
from lightning_pelt.search.progress import Progress, status
from lightning_pelt.search.tracking import Tracker, cells_of

SUBSETS = ("L", "AL", "AP", "APB", "PBL")
Outcomes = dict[str, Outcome]


@pytest.fixture(scope="module")
def halfway() -> tuple[Walk, Outcomes]:
    """In the middle of the race of groupings: each fit takes 10 seconds."""
    course = simulated.course(subsets=SUBSETS)
    outcomes: Outcomes = {}
    walk = course.walk(outcomes)
    outcomes |= {c.key: Outcome(simulated.score(c), 10.0) for c in walk.wanted}
    walk = course.walk(outcomes)
    assert walk.records[-1].stage.name == "grouping"
    outcomes |= {c.key: Outcome(simulated.score(c), 10.0) for c in walk.wanted[:20]}
    return course.walk(outcomes), outcomes


@pytest.fixture(scope="module")
def over() -> tuple[Walk, Outcomes]:
    return simulated.play(simulated.course(subsets=SUBSETS, seeds=(0,)))


def counts(walk: Walk, outcomes: Outcomes, running: int = 2, workers: int = 2) -> Counts:
    return Counts(len(walk.wanted) - running, running, len(outcomes), workers)


# -- what is said ---------------------------------------------------------------------------------


def test_the_status_counts_cells_survivors_and_time(halfway: tuple[Walk, Outcomes]) -> None:
    walk, outcomes = halfway
    now = status(walk, outcomes, counts(walk, outcomes))
    asked = 20 + len(walk.wanted)
    assert now[:3] == ("S1: how many blocks each group holds", 20, asked)
    survivors, best, work, done, left = now.rest
    assert survivors == "4 of 4 options left"
    standings = {s.arm: s.mean for s in walk.records[-1].contest.standings() if s.blocks}
    name = max(standings, key=lambda arm: standings[arm])
    assert best == f"best so far: {name} ({standings[name]:.1f})"
    assert work == f"2 running on 2 workers, {len(walk.wanted) - 2} waiting"
    assert done == f"{len(outcomes)} done in all"
    # All but half of the two that are running, 10 s each, on two workers.
    seconds = (len(walk.wanted) - 1) * 10 / 2
    assert left == f"at least {seconds / 60:.0f} min left"


def test_without_a_worker_no_time_is_promised(halfway: tuple[Walk, Outcomes]) -> None:
    walk, outcomes = halfway
    now = status(walk, outcomes, counts(walk, outcomes, running=0, workers=0))
    assert now.rest[-1] == "no worker is at work"


def test_the_beginning_and_the_end_have_a_status(over: tuple[Walk, Outcomes]) -> None:
    begin = simulated.course(subsets=SUBSETS).walk({})
    assert status(begin, {}, counts(begin, {})).rest[:1] == (
        f"2 running on 2 workers, {len(begin.wanted) - 2} waiting",
    )
    walk, outcomes = over
    now = status(walk, outcomes, counts(walk, outcomes, running=0))
    assert (now.stage, now.done, now.asked) == ("Over", 10, 10)
    assert now.rest[0].startswith("best: found design (")


def test_fresh_blocks_are_named() -> None:
    course = simulated.course(subsets=SUBSETS)
    outcomes: Outcomes = {}
    while not (walk := course.walk(outcomes)).records[-1].fresh:
        outcomes |= {c.key: Outcome(simulated.score(c), 1.0) for c in walk.wanted}
    assert walk.records[-1].fresh is not None
    winner, rival = walk.records[-1].fresh.arms
    now = status(walk, outcomes, counts(walk, outcomes))
    assert now.rest[0] == f"{winner} against {rival} on fresh blocks"


# -- where it is said -----------------------------------------------------------------------------


def test_a_log_gets_a_line_per_stage_and_one_now_and_then(
    halfway: tuple[Walk, Outcomes], over: tuple[Walk, Outcomes]
) -> None:
    log, times = io.StringIO(), iter([0.0, 30.0, 61.0, 62.0, 63.0])
    with Progress("mine", file=log, every=60, clock=lambda: next(times)) as progress:
        for _ in range(4):  # at 0, 30, 61 and 62 seconds
            progress.show(*halfway, counts(*halfway))
        progress.show(*over, counts(*over, running=0))
    lines = log.getvalue().splitlines()
    asked = 20 + len(halfway[0].wanted)
    first = f"mine, S1: how many blocks each group holds: 20 of {asked} fits; 4 of 4 options left;"
    assert [line.startswith(first) for line in lines] == [True, True, False]
    assert lines[2].startswith("mine, Over: 10 of 10 fits; best: found design")
    assert "\r" not in log.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_a_line_that_fits(
    halfway: tuple[Walk, Outcomes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    terminal = Terminal()
    with Progress("mine", file=terminal) as progress:
        progress.show(*halfway, counts(*halfway))
    shown = terminal.getvalue()
    asked = 20 + len(halfway[0].wanted)
    assert "mine, S1: how many blocks each group holds:" in shown
    assert f"20 of {asked} fits" in shown
    line = next(part for part in shown.replace("\n", "\r").split("\r") if "options left" in part)
    assert len(line.replace("\x1b[A", "").rstrip()) <= 59


# -- Weights & Biases -----------------------------------------------------------------------------


class FakeRun:
    """Keeps what it is given."""

    def __init__(self, id: str) -> None:
        self.id, self.summary, self.finished = id, dict[str, Any](), False
        self.rows: list[tuple[int, dict[str, Any]]] = []

    def log(self, row: dict[str, Any], step: int) -> None:
        self.rows.append((step, row))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeRun]]:
    made: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        made.append(FakeRun(options["id"] or "first"))
        return made[-1]

    monkeypatch.setattr("wandb.init", init)
    yield made


def test_nothing_happens_without_settings(
    over: tuple[Walk, Outcomes], runs: list[FakeRun], tmp_path: Path
) -> None:
    with Tracker(None, tmp_path / "none") as tracker:
        assert tracker.log(*over) == 0
        tracker.end(*over)
    assert not runs and not (tmp_path / "none").exists()


def test_each_cell_is_logged_once_also_after_a_resume(
    halfway: tuple[Walk, Outcomes],
    over: tuple[Walk, Outcomes],
    runs: list[FakeRun],
    tmp_path: Path,
) -> None:
    with Tracker(Wandb(), tmp_path) as tracker:
        assert tracker.log(*halfway) == len(halfway[1])
        assert tracker.log(*halfway) == 0
    with Tracker(Wandb(), tmp_path) as tracker:
        walk, outcomes = over
        assert tracker.log(walk, outcomes) == len(outcomes) - len(halfway[1])
    assert [run.id for run in runs] == ["first", "first"] and all(run.finished for run in runs)
    steps = [step for run in runs for step, _ in run.rows]
    assert steps == list(range(len(outcomes)))
    logged = [row for run in runs for _, row in run.rows]
    expected = [outcomes[cell.key].score for cell in cells_of(walk)]
    assert sorted(row["score"] for row in logged) == sorted(expected)  # type: ignore[type-var]


def test_a_row_says_what_was_fitted(runs: list[FakeRun], tmp_path: Path) -> None:
    course = simulated.course(subsets=SUBSETS)
    walk, outcomes = simulated.play(course, until="allocation")
    worst = next(
        c for c in walk.records[1].cells.values() if c.label == "grouping: uniform, block 3"
    )
    outcomes[worst.key] = Outcome(None, 4.0)
    with Tracker(Wandb(), tmp_path) as tracker:
        tracker.log(walk, outcomes)
    rows = [row for _, row in runs[0].rows if (row["option"], row["block"]) == ("uniform", 3)]
    (row,) = [row for row in rows if row["task"] == worst.task]
    assert row == {
        "stage": "grouping",
        "option": "uniform",
        "block": 3,
        "task": worst.task,
        "seconds": 4.0,
        "parameters": worst.parameters,
        "diverged": True,
    }


@pytest.mark.slow
def test_an_offline_run_is_written_with_its_table_and_pictures(
    over: tuple[Walk, Outcomes], tmp_path: Path
) -> None:
    walk, outcomes = over
    report = tmp_path / "report.md"
    Figure().savefig(tmp_path / "cost.png")
    with Tracker(Wandb(offline=True), tmp_path, "mine") as tracker:
        tracker.end(walk, outcomes, report)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert any(folder.glob("*.wandb"))
    assert [p.name for p in folder.rglob("*.png")], "the picture is part of the run"
    (table,) = folder.rglob("cells*.table.json")
    rows = json.loads(table.read_text())["data"]
    assert len(rows) == len(outcomes) == len(tracker._logged)
    assert json.loads((tmp_path / "wandb.json").read_text())["run"] in folder.name
