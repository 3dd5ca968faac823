"""Logging to Weights & Biases: one run for a search, one step for each fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import wandb

from lightning_pelt.search.queue.job import Job, Outcome, Outcomes
from lightning_pelt.search.report.wandb_run import describe, open_run
from lightning_pelt.search.search_state import SearchState
from lightning_pelt.search.task_settings import WandbSettings
from lightning_pelt.utils.files import write_aside
from lightning_pelt.utils.json_data import parse_json

STATE = "wandb.json"
COLUMNS = ("stage", "option", "block", "task", "score", "seconds", "parameters", "diverged")


class Tracker:
    """Logs each finished job once, also if the search is interrupted and continued.

    ``wandb.json`` in ``folder`` stores the id of the run and the logged jobs. A job's step is its
    position in that list, so a job that was logged just before the process died is overwritten, not
    duplicated. Leaving the ``with`` block ends the run; the next tracker of the folder resumes it.

    Args:
        settings: None logs nothing and does not contact W&B.
        folder: of the search; offline runs are stored in its subfolder ``wandb``.
        name: of the run.
        config: of the search, as plain data.
        group: of the runs of this search.

    Raises:
        ValueError: ``wandb.json`` is damaged.

    Example::

        with Tracker(WandbSettings(offline=True), "runs/search/search") as tracker:
            tracker.log(state, outcomes)
    """

    def __init__(
        self,
        settings: WandbSettings | None,
        folder: str | Path,
        name: str = "search",
        *,
        config: Mapping[str, Any] | None = None,
        group: str | None = None,
    ) -> None:
        self.settings, self.folder, self.group = settings, Path(folder), group
        self.name, self.config = name, dict(config or {})
        self._run: Any = None
        self._id: str | None = None
        self._jobs: dict[str, Job] = {}
        self._logged: dict[str, None] = {}  # an ordered set
        if settings is not None:
            self._id, self._logged = _read_state(self.folder / STATE)

    def log(self, state: SearchState, outcomes: Outcomes) -> int:
        """Log the finished jobs that have not been logged.

        Returns:
            Number of jobs that were logged.
        """
        if self.settings is None:
            return 0
        self._jobs |= {job.key: job for job in all_jobs(state)}
        done = [job for key, job in self._jobs.items() if key in outcomes]
        new = [job for job in done if job.key not in self._logged]
        if not new:
            return 0
        run = self._open()
        for job in new:
            row = {k: v for k, v in _row(job, outcomes[job.key]).items() if v is not None}
            run.log(row, step=len(self._logged))
            self._logged[job.key] = None
        self._save()
        return len(new)

    def end(self, state: SearchState, outcomes: Outcomes, report: Path | None = None) -> None:
        """Log the remaining jobs, a table of all jobs, the found design and the report's figures.

        Args:
            state: of the search.
            outcomes: by the key of the job.
            report: the page; the figures are the PNG files in its folder.
        """
        if self.settings is None:
            return
        self.log(state, outcomes)
        run = self._open()
        rows = [_row(job, outcomes[key]) for key, job in self._jobs.items() if key in outcomes]
        last: dict[str, Any] = {
            "cells": wandb.Table([*COLUMNS], [[row[name] for name in COLUMNS] for row in rows])
        }
        for path in sorted(report.parent.glob("*.png")) if report is not None else ():
            last[f"pictures/{path.stem}"] = wandb.Image(str(path))
        run.log(last, step=len(self._logged))
        run.summary.update({f"chosen/{stage}": option for stage, option in state.settled.items()})
        if state.found is not None:
            run.summary["found"] = repr(state.found)

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

    def _open(self) -> Any:
        assert self.settings is not None
        if self._run is None:
            self._run = open_run(
                self.settings,
                self.folder,
                name=self.name,
                id=self._id,
                resume="allow" if self._id else None,
                config=self.config,
                group=self.group,
                job_type="search",
            )
            self._id = self._run.id
            self._save()
        return self._run

    def _save(self) -> None:
        state = json.dumps({"run": self._id, "logged": [*self._logged]})
        write_aside(self.folder / STATE, lambda aside: aside.write_text(state, encoding="utf-8"))


def _read_state(path: Path) -> tuple[str | None, dict[str, None]]:
    """The id of the run, and the keys of the logged jobs in their order.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        state = parse_json(path.read_bytes(), path)
        return state["run"], dict.fromkeys(state["logged"])
    except FileNotFoundError:
        return None, {}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): delete it, and the search is logged as a new run"
        ) from error


def all_jobs(state: SearchState) -> Iterator[Job]:
    """The jobs of a search so far, each once, in the order in which the search asked for them."""
    stages = [record.jobs.values() for record in state.records]
    last = [] if state.comparison is None else state.comparison.jobs
    first: dict[str, Job] = {}
    for job in chain(state.gated_jobs, *stages, last):
        first.setdefault(job.key, job)
    yield from first.values()


def _row(job: Job, outcome: Outcome) -> dict[str, Any]:
    """The logged values of a job."""
    return {
        **describe(job),
        "score": outcome.score,
        "seconds": outcome.seconds,
        "diverged": outcome.diverged,
    }
