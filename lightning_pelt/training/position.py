"""Where a run stands: epochs, batches, and whether the validation is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer


@dataclass(frozen=True)
class Position:
    """A place in a run.

    Args:
        epoch: number of complete epochs.
        batches: number of complete batches of the next epoch.
        last: whether the epoch has no batch after these.
        total: number of complete batches of all epochs.
        logged: number of steps that the loggers have seen.
        inside: whether the epoch has begun and its end has not.
        validates: whether a validation after the last batch is still to be run, if it is due.
        plateau: whether an epoch has ended whose metrics the schedulers have not read yet.
        accumulating: whether gradients of the last batches wait for the optimizer's step. A
            checkpoint holds them if there is one process and no batch has begun. Otherwise
            ``batches`` counts to the start of the window, which is run again.
    """

    epoch: int
    batches: int
    last: bool
    total: int
    logged: int
    inside: bool = False
    validates: bool = False
    plateau: bool = False
    accumulating: bool = False

    @classmethod
    def of(cls, trainer: Trainer) -> Position:
        """The place where the trainer is now, in any hook of a fit or after it."""
        loop = trainer.fit_loop.epoch_loop
        epochs: Any = trainer.fit_loop.epoch_progress.current
        batches: Any = loop.batch_progress.current
        total: int = loop.batch_progress.total.processed  # type: ignore[attr-defined]
        logged = loop._batches_that_stepped
        between = batches.ready == batches.processed  # no batch has begun and is not complete
        last = between and loop._num_ready_batches_reached()
        inside = epochs.started > epochs.processed
        if not inside and (last or not batches.processed):
            plateau = epochs.completed < epochs.processed
            return cls(epochs.processed, 0, False, total, logged, plateau=plateau)
        window = 0 if last else batches.processed % trainer.accumulate_grad_batches
        back = 0 if between and trainer.world_size == 1 else window
        after_step = inside and between and batches.completed < batches.processed
        validating = inside and between and _validating(trainer)
        return cls(
            # An epoch that max_steps, a time limit or early stopping has cut short is not complete.
            epoch=epochs.processed - (not inside),
            batches=batches.processed - back,
            last=last,
            total=total - back,
            logged=logged + ((after_step or validating) and not window),
            inside=inside,
            validates=not back and (after_step or (validating and not _validated(trainer))),
            accumulating=window > back,
        )


def validation_is_due(trainer: Trainer) -> bool:
    """Whether a validation follows the last batch."""
    fit = trainer.fit_loop
    return fit.epoch_loop._should_check_val_fx(fit._data_fetcher)  # type: ignore[arg-type]


def validation_is_scheduled(trainer: Trainer) -> bool:
    """Whether the validation after the last batch also belongs to a run that is not stopped there.

    A run that is stopped, for example by ``max_time``, validates at the batch at which it stops.
    """
    stopping, trainer.should_stop = trainer.should_stop, False
    try:
        return validation_is_due(trainer)
    finally:
        trainer.should_stop = stopping


def _validating(trainer: Trainer) -> bool:
    return trainer.validating or trainer.fit_loop.epoch_loop.val_loop.restarted_mid_evaluation


def _validated(trainer: Trainer) -> bool:
    loop = trainer.fit_loop.epoch_loop.val_loop
    progress = loop.batch_progress
    complete = progress.is_last_batch and progress.current.completed == progress.current.ready
    return complete and not loop._logged_outputs  # which it empties before `on_validation_end`
