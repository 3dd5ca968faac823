"""The ledger of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fuzz.target import Target

from lightning_pelt import LoRA, Plan
from lightning_pelt.search.queue.job import Job, Outcome
from lightning_pelt.search.queue.ledger import Ledger

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
