"""The cells of a search in Weights & Biases: one run for a search, one step for each fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import wandb

from lightning_pelt.files import write_aside
from lightning_pelt.search.cell import Cell, Outcome
from lightning_pelt.search.course import Walk
from lightning_pelt.search.parts import Wandb

Outcomes = Mapping[str, Outcome]
STATE = "wandb.json"
COLUMNS = ("stage", "option", "block", "task", "score", "seconds", "parameters", "diverged")


class Tracker:
    """Logs finished cells, each of them once, also when a search goes on after a break.

    Which run it is and which cells it has are kept in ``wandb.json`` in ``folder``. A cell's step
    is its place in that list, so one that was logged just before the process died is logged over,
    not beside, when it is logged again. Leaving the ``with`` block ends the run, and the next
    tracker of the folder takes it up again.

    Args:
        settings: None logs nothing, and asks nothing of W&B.
        folder: of the search; offline runs lie in its ``wandb``.
        name: of the run.
        config: of the search, as plain data.
    """

    def __init__(
        self,
        settings: Wandb | None,
        folder: str | Path,
        name: str = "search",
        *,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.folder = settings, Path(folder)
        self.name, self.config = name, dict(config or {})
        self._run: Any = None
        self._id: str | None = None
        self._cells: dict[str, Cell] = {}
        self._logged: dict[str, None] = {}  # a set that keeps its order
        if settings is not None:
            with suppress(FileNotFoundError):
                state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
                self._id, self._logged = state["run"], dict.fromkeys(state["logged"])

    def log(self, walk: Walk, outcomes: Outcomes) -> int:
        """Log the cells that are done and were not logged yet.

        Returns:
            How many they were.
        """
        if self.settings is None:
            return 0
        self._cells |= {cell.key: cell for cell in cells_of(walk)}
        done = [cell for key, cell in self._cells.items() if key in outcomes]
        new = [cell for cell in done if cell.key not in self._logged]
        if not new:
            return 0
        run = self._begin()
        for cell in new:
            row = {k: v for k, v in _row(cell, outcomes[cell.key]).items() if v is not None}
            run.log(row, step=len(self._logged))
            self._logged[cell.key] = None
        self._keep()
        return len(new)

    def end(self, walk: Walk, outcomes: Outcomes, report: Path | None = None) -> None:
        """Log what is left, a table of all cells, what was found, and the report's pictures.

        Args:
            walk: as far as the search has come.
            outcomes: by the key of their cell.
            report: its page; the pictures are the PNG files beside it.
        """
        if self.settings is None:
            return
        self.log(walk, outcomes)
        run = self._begin()
        rows = [_row(cell, outcomes[key]) for key, cell in self._cells.items() if key in outcomes]
        last: dict[str, Any] = {
            "cells": wandb.Table([*COLUMNS], [[row[name] for name in COLUMNS] for row in rows])
        }
        for path in sorted(report.parent.glob("*.png")) if report is not None else ():
            last[f"pictures/{path.stem}"] = wandb.Image(str(path))
        run.log(last, step=len(self._logged))
        run.summary.update({f"chosen/{stage}": option for stage, option in walk.settled.items()})
        if walk.found is not None:
            run.summary["found"] = repr(walk.found)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _begin(self) -> Any:
        assert self.settings is not None
        if self._run is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=self.settings.project,
                name=self.name,
                id=self._id,
                resume="allow" if self._id else None,
                dir=str(self.folder),
                config=self.config,
                mode="offline" if self.settings.offline else None,
                settings=wandb.Settings(console="off"),  # the live view is no part of the run
            )
            self._id = self._run.id
            self._keep()
        return self._run

    def _keep(self) -> None:
        state = json.dumps({"run": self._id, "logged": [*self._logged]})
        write_aside(self.folder / STATE, lambda aside: aside.write_text(state, encoding="utf-8"))


def cells_of(walk: Walk) -> Iterator[Cell]:
    """The cells of a search so far, each once, in the order in which it came to want them."""
    stages = [record.cells.values() for record in walk.records]
    finals = [] if walk.finals is None else walk.finals.cells
    first: dict[str, Cell] = {}
    for cell in chain(walk.gated, *stages, finals):
        first.setdefault(cell.key, cell)
    yield from first.values()


def _row(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    """What is logged of a cell; its label is ``"stage: option, block 3"``, or ``seed 3``."""
    stage, _, rest = cell.label.partition(": ")
    option, _, unit = rest.rpartition(", ")
    number = unit.rpartition(" ")[2]
    return {
        "stage": stage,
        "option": option or rest,
        "block": int(number) if number.isdecimal() else None,
        "task": cell.task,
        "score": outcome.score,
        "seconds": outcome.seconds,
        "parameters": cell.parameters,
        "diverged": outcome.diverged,
    }
