"""Runs of Weights & Biases: how they are opened, and one for each fit."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger

from lightning_pelt.search.queue.job import Job, Outcome
from lightning_pelt.search.task_settings import WandbSettings
from lightning_pelt.utils.urls import masked

_logger = logging.getLogger(__name__)


def open_run(settings: WandbSettings, folder: Path, **options: Any) -> Any:
    """Open a run of the project; other runs of the process stay as they are.

    Args:
        settings: of the search.
        folder: of the search; offline runs are stored in its subfolder ``wandb``.
        options: of ``wandb.init``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    silent = options.pop("silent", False)
    with _masked_command_line():
        return wandb.init(
            project=settings.project,
            dir=str(folder),
            mode="offline" if settings.offline else None,
            # Progress bars are not part of a run.
            settings=wandb.Settings(console="off", reinit="create_new", silent=silent),
            **options,
        )


@contextmanager
def _masked_command_line() -> Iterator[None]:
    """Hide passwords from W&B, which stores the arguments of the process."""
    before = sys.argv
    sys.argv = [masked(argument) for argument in before]
    try:
        yield
    finally:
        sys.argv = before


class FitRun:
    """The run of one fit.

    Attributes:
        logger: for the Trainer.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        # What WandbLogger defines for runs that it opens itself.
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        self.logger = WandbLogger(experiment=run)

    def finish(self, outcome: Outcome) -> None:
        """Store the outcome of the fit in the summary."""
        known = {"seconds": outcome.seconds, "diverged": outcome.diverged}
        self._run.summary.update({**known, "score": outcome.score, **outcome.metrics})


@contextmanager
def fit_run(
    settings: WandbSettings | None, job: Job, *, folder: Path, group: Callable[[], str]
) -> Iterator[FitRun | None]:
    """The run of a fit, which ends with the ``with`` block; None if fits are not logged.

    A run that cannot be opened does not end the fit. A warning names the reason.

    Args:
        settings: of the search.
        job: that is fitted.
        folder: of the search.
        group: gives the name of the runs' group.
    """
    run: Any = None
    if settings is not None and settings.fits:
        try:
            run = open_run(
                settings,
                folder,
                name=f"{job.label or job.key}, {job.task}",
                group=group(),
                job_type="fit",
                config={"job": {**describe(job), "key": job.key, "seed": job.seed}},
                silent=True,
            )
        except Exception as error:
            _logger.warning("the fit %s is not logged to W&B: %s", job.label or job.key, error)
    if run is None:
        yield None
        return
    try:
        yield FitRun(run)
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def describe(job: Job) -> dict[str, Any]:
    """What a job fits; its label is ``"stage: option, block 3"``, or ``seed 3``."""
    stage, _, rest = job.label.partition(": ")
    option, _, unit = rest.rpartition(", ")
    number = unit.rpartition(" ")[2]
    return {
        "stage": stage,
        "option": option or rest,
        "block": int(number) if number.isdecimal() else None,
        "task": job.task,
        "parameters": job.parameters,
    }
