"""Refuses, before the first epoch, a callback that waits for a metric that will not exist."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_pelt.utils.errors import unknown

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

# Prefixes of the metrics that callbacks log, by the callback's name.
OF_CALLBACKS = {"LearningRateMonitor": "lr-", "GateMonitor": "gate/", "GateSchedule": "schedule/"}
# Packages whose modules and callbacks log nothing else.
KNOWN = ("lightning", "lightning_pelt", "pytorch_lightning")


def check_monitors(trainer: Trainer, module: LightningModule, metrics: Collection[str]) -> None:
    """Compare what ``ModelCheckpoint`` and ``EarlyStopping`` monitor with what will be logged.

    A module or callback of another package might log the metric, so there is only a warning then.

    Args:
        trainer: of a fit whose data are set up.
        module: that is fitted.
        metrics: names that it logs.

    Raises:
        ValueError: a metric will not exist; the message names the nearest that will.
    """
    callbacks: list[object] = list(trainer.callbacks)  # type: ignore[attr-defined]
    others = [type(each).__name__ for each in (module, *callbacks) if _is_foreign(each)]
    kinds = [type(each).__name__ for each in callbacks]
    prefixes = tuple(prefix for kind, prefix in OF_CALLBACKS.items() if kind in kinds)
    validates = _validates(trainer)
    exist = [name for name in metrics if validates or not name.startswith("val/")]
    for callback in callbacks:
        if not isinstance(callback, (ModelCheckpoint, EarlyStopping)):
            continue
        name = callback.monitor
        counted = ("epoch", "step") if isinstance(callback, ModelCheckpoint) else ()
        if name is None or name.startswith(prefixes) or name in (*exist, *counted):
            continue
        error = _error(f"metric that {type(callback).__name__} monitors:", name, exist, metrics)
        if not others:
            raise error
        rank_zero_warn(f"{error}. It will be missing unless {' or '.join(others)} logs it")


def _error(kind: str, name: str, exist: list[str], metrics: Collection[str]) -> ValueError:
    if name not in metrics:
        return unknown(kind, name, exist)
    return ValueError(
        f"{kind} {name!r} is computed in validation, and this fit has none: give the data a dev "
        f"split and validate in this fit, or monitor one of: {', '.join(exist)}"
    )


def _is_foreign(value: object) -> bool:
    return type(value).__module__.partition(".")[0] not in KNOWN


def _validates(trainer: Trainer) -> bool:
    """Whether a validation can take place in this fit."""
    if not trainer.enable_validation:
        return False
    every, last = trainer.check_val_every_n_epoch, trainer.max_epochs
    if every is not None and last is not None and 0 <= last < every:
        return False
    return trainer.val_dataloaders is None or any(trainer.num_val_batches)
