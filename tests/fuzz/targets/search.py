"""The ledger of a search, and the report that is written from it."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import simulated
from fuzz.target import Target
from small import Sentences

from lightning_pelt import LoRA, Plan
from lightning_pelt.search.queue.job import Job, Outcome
from lightning_pelt.search.queue.ledger import Ledger
from lightning_pelt.search.report import report
from lightning_pelt.search.settings import Settings
from lightning_pelt.search.task_settings import FitSettings, TaskSettings

SETTINGS = {"model": "tiny"}


def ledger(folder: Path) -> Ledger:
    return Ledger(str(folder / "ledger.journal"), "search", SETTINGS)


class SearchLedger(Target):
    name = "Ledger"
    errors = (ValueError, OSError)

    def write(self, folder: Path) -> None:
        made = ledger(folder)
        plan = Plan.uniform(LoRA(r=4)).to_config()
        made.enqueue(Job(plan, "sst2", seed=seed) for seed in range(3))
        for score in (70.5, None):
            claim = made.claim()
            assert claim is not None
            made.finish(claim, Outcome(score, seconds=1.0))

    def load(self, folder: Path) -> Any:
        found = ledger(folder)
        found.reap()
        found.counts()
        found.errors()
        return found.outcomes()

    def problem(self, folder: Path, result: Any) -> str | None:
        wrong = [one for one in result.values() if one.score not in (70.5, None)]
        return f"wrong outcomes were read: {wrong}" if wrong else None


class SearchReport(Target):
    """The report of a search that has begun, from its ledger."""

    name = "search report"
    errors = (ValueError, OSError)

    def __init__(self) -> None:
        report.save = _save  # type: ignore[assignment]  # drawing takes most of the time
        logging.getLogger("optuna").setLevel(logging.ERROR)
        self.search = simulated.make_search(subsets=("L", "AP"))
        self.settings = Settings(
            "a/backbone",
            tasks={name: TaskSettings(_data) for name in simulated.TASKS},
            fit=FitSettings(max_steps=10),
            search_budget=simulated.BUDGET,
        )

    def write(self, folder: Path) -> None:
        made = ledger(folder)
        jobs = self.search.replay({}).wanted
        made.enqueue(jobs)
        while claim := made.claim():
            score = simulated.score(claim.job)
            made.finish(claim, Outcome(score, seconds=1.0, metrics={"val/accuracy": score}))

    def load(self, folder: Path) -> Any:
        found = ledger(folder).outcomes()
        state = self.search.replay(found)
        path = report.write_report(
            folder / "report", state, found, settings=self.settings, space=self.search.space
        )
        return path.read_text()

    def problem(self, folder: Path, result: Any) -> str | None:
        lines = result.splitlines()
        for first, second in pairwise(lines):
            both = first.startswith("|") and second.startswith("|")
            if both and first.count("|") != second.count("|"):
                return f"the rows of a table differ: {first!r}, {second!r}"
        return "markup got into the report" if "<script" in result else None


def _data(backbone: str, **_: Any) -> Sentences:
    return Sentences(backbone)


def _save(figure: Any, path: Path) -> None:
    path.write_bytes(b"")
