"""Progress of a search on a terminal, in a log, and in Weights & Biases."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import simulated
import wandb
from callbacks import offline_wandb
from matplotlib.figure import Figure

from lightning_pelt.search.queue.job import JobCounts, Outcome
from lightning_pelt.search.report.progress import Progress, status
from lightning_pelt.search.report.wandb import Tracker, all_jobs
from lightning_pelt.search.search_state import SearchState
from lightning_pelt.search.task_settings import WandbSettings

# A whole simulated search is played first.
pytestmark = pytest.mark.slow

SUBSETS = ("L", "AL", "AP", "APB", "PBL")
Outcomes = dict[str, Outcome]


@pytest.fixture(scope="module")
def halfway() -> tuple[SearchState, Outcomes]:
    """A search in the race of groupings; each fit takes 10 seconds."""
    search = simulated.make_search(subsets=SUBSETS)
    outcomes: Outcomes = {}
    state = search.replay(outcomes)
    outcomes |= {c.key: Outcome(simulated.score(c), 10.0) for c in state.wanted}
    state = search.replay(outcomes)
    assert state.records[-1].stage.name == "grouping"
    outcomes |= {c.key: Outcome(simulated.score(c), 10.0) for c in state.wanted[:20]}
    return search.replay(outcomes), outcomes


@pytest.fixture(scope="module")
def finished() -> tuple[SearchState, Outcomes]:
    return simulated.play(simulated.make_search(subsets=SUBSETS, seeds=(0,)))


def counts(state: SearchState, outcomes: Outcomes, running: int = 2, workers: int = 2) -> JobCounts:
    return JobCounts(len(state.wanted) - running, running, len(outcomes), workers)


# -- status ---------------------------------------------------------------------------------------


def test_the_status_has_jobs_active_options_and_time(halfway: tuple[SearchState, Outcomes]) -> None:
    state, outcomes = halfway
    now = status(state, outcomes, counts(state, outcomes))
    asked = 20 + len(state.wanted)
    assert now[:3] == ("S1: how many blocks each group holds", 20, asked)
    options, best, work, done, left = now.details
    assert options == "4 of 4 options left"
    arms = {s.arm: s.mean for s in state.records[-1].selection.stats() if s.blocks}
    name = max(arms, key=lambda arm: arms[arm])
    assert best == f"best so far: {name} ({arms[name]:.1f})"
    assert work == f"2 running on 2 workers, {len(state.wanted) - 2} waiting"
    assert done == f"{len(outcomes)} done in all"
    # All but half of the two that are running, 10 s each, on two workers.
    seconds = (len(state.wanted) - 1) * 10 / 2
    assert left == f"at least {seconds / 60:.0f} min left"


def test_without_a_worker_no_remaining_time_is_shown(halfway: tuple[SearchState, Outcomes]) -> None:
    state, outcomes = halfway
    now = status(state, outcomes, counts(state, outcomes, running=0, workers=0))
    assert now.details[-1] == "no worker is running"
    begin = simulated.make_search(subsets=SUBSETS).replay({})
    now = status(begin, {}, JobCounts(len(begin.wanted), 0, 0, 0))
    assert now.details[-1] == "no worker has started a fit yet"


def test_workers_between_two_fits_are_counted(halfway: tuple[SearchState, Outcomes]) -> None:
    """The controller reads the ledger when a stage has just asked for its first fits."""
    state, outcomes = halfway
    wanted = len(state.wanted)
    now = status(state, outcomes, JobCounts(wanted, 0, len(outcomes), workers=0, idle=2))
    assert f"0 running on 2 workers, {wanted} waiting" in now.details
    assert now.details[-1] == f"at least {wanted * 10 / 2 / 60:.0f} min left"


@pytest.mark.slow
def test_the_status_at_the_start_and_at_the_end(finished: tuple[SearchState, Outcomes]) -> None:
    begin = simulated.make_search(subsets=SUBSETS).replay({})
    assert status(begin, {}, counts(begin, {})).details[:1] == (
        f"2 running on 2 workers, {len(begin.wanted) - 2} waiting",
    )
    state, outcomes = finished
    now = status(state, outcomes, counts(state, outcomes, running=0))
    assert (now.stage, now.done, now.asked) == ("Finished", 10, 10)
    assert now.details[0].startswith("best: found design (")


def test_fresh_blocks_are_named() -> None:
    search = simulated.make_search(subsets=SUBSETS)
    outcomes: Outcomes = {}
    while not (state := search.replay(outcomes)).records[-1].confirmation:
        outcomes |= {c.key: Outcome(simulated.score(c), 1.0) for c in state.wanted}
    assert state.records[-1].confirmation is not None
    winner, runner_up = state.records[-1].confirmation.arms
    now = status(state, outcomes, counts(state, outcomes))
    assert now.details[0] == f"{winner} against {runner_up} on new replicates"


# -- output ---------------------------------------------------------------------------------------


def test_a_log_gets_a_line_per_stage_and_one_per_interval(
    halfway: tuple[SearchState, Outcomes], finished: tuple[SearchState, Outcomes]
) -> None:
    log, times = io.StringIO(), iter([0.0, 30.0, 61.0, 62.0, 63.0])
    with Progress("mine", file=log, every=60, clock=lambda: next(times)) as progress:
        for _ in range(4):  # at 0, 30, 61 and 62 seconds
            progress.show(*halfway, counts(*halfway))
        progress.show(*finished, counts(*finished, running=0))
    lines = log.getvalue().splitlines()
    asked = 20 + len(halfway[0].wanted)
    first = f"mine, S1: how many blocks each group holds: 20 of {asked} fits; 4 of 4 options left;"
    assert [line.startswith(first) for line in lines] == [True, True, False]
    assert lines[2].startswith("mine, Finished: 10 of 10 fits; best: found design")
    assert "\r" not in log.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_a_line_cut_to_its_width(
    halfway: tuple[SearchState, Outcomes], monkeypatch: pytest.MonkeyPatch
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
    """Records its calls."""

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


def test_without_settings_nothing_is_logged(
    finished: tuple[SearchState, Outcomes], runs: list[FakeRun], tmp_path: Path
) -> None:
    with Tracker(None, tmp_path / "none") as tracker:
        assert tracker.log(*finished) == 0
        tracker.end(*finished)
    assert not runs and not (tmp_path / "none").exists()


def test_each_job_is_logged_once_also_after_a_resume(
    halfway: tuple[SearchState, Outcomes],
    finished: tuple[SearchState, Outcomes],
    runs: list[FakeRun],
    tmp_path: Path,
) -> None:
    with Tracker(WandbSettings(), tmp_path) as tracker:
        assert tracker.log(*halfway) == len(halfway[1])
        assert tracker.log(*halfway) == 0
    with Tracker(WandbSettings(), tmp_path) as tracker:
        state, outcomes = finished
        assert tracker.log(state, outcomes) == len(outcomes) - len(halfway[1])
    assert [run.id for run in runs] == ["first", "first"] and all(run.finished for run in runs)
    steps = [step for run in runs for step, _ in run.rows]
    assert steps == list(range(len(outcomes)))
    logged = [row for run in runs for _, row in run.rows]
    expected = [outcomes[job.key].score for job in all_jobs(state)]
    assert sorted(row["score"] for row in logged) == sorted(expected)  # type: ignore[type-var]


def test_a_row_describes_the_fit(runs: list[FakeRun], tmp_path: Path) -> None:
    search = simulated.make_search(subsets=SUBSETS)
    state, outcomes = simulated.play(search, until="allocation")
    worst = next(
        c for c in state.records[1].jobs.values() if c.label == "grouping: uniform, block 3"
    )
    outcomes[worst.key] = Outcome(None, 4.0)
    with Tracker(WandbSettings(), tmp_path) as tracker:
        tracker.log(state, outcomes)
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
    finished: tuple[SearchState, Outcomes], tmp_path: Path
) -> None:
    state, outcomes = finished
    report = tmp_path / "report.md"
    Figure().savefig(tmp_path / "cost.png")
    with Tracker(WandbSettings(offline=True), tmp_path, "mine", group="mine-1a2b") as tracker:
        tracker.end(state, outcomes, report)
    wandb.teardown()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    record = offline_wandb.run(folder)
    assert (record.run_group, record.job_type) == ("mine-1a2b", "search")
    assert [p.name for p in folder.rglob("*.png")], "the picture is part of the run"
    (table,) = folder.rglob("cells*.table.json")
    rows = json.loads(table.read_text())["data"]
    assert len(rows) == len(outcomes) == len(tracker._logged)
    assert json.loads((tmp_path / "wandb.json").read_text())["run"] in folder.name


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"run": 1, "logged": 5}', "\ud800", "[" * 99_999]
)
def test_a_damaged_state_of_the_run_is_named_with_the_remedy(tmp_path: Path, content: str) -> None:
    (tmp_path / "wandb.json").write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=r"wandb\.json is damaged .*: delete it"):
        Tracker(WandbSettings(), tmp_path)


def test_a_run_does_not_store_the_password_of_the_storage(
    halfway: tuple[SearchState, Outcomes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["search", "--storage=postgresql://ann:hunter2@host/db"]
    monkeypatch.setattr("sys.argv", arguments)
    with Tracker(WandbSettings(offline=True), tmp_path, "mine") as tracker:
        tracker.log(*halfway)
    assert sys.argv == arguments
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"ann:***@host" in content for content in files)  # the command line is stored
    assert not any(b"hunter2" in content for content in files)
