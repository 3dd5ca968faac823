"""Give a picture, a table, a text or hyperparameters to every logger of a trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_pelt.callbacks._gate_means import logging_step
from lightning_pelt.callbacks._sinks import Files, Media, sink_of
from lightning_pelt.utils.same_kind import same_kind

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_warned: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()  # names, by logger or trainer


def log_media(trainer: Trainer, name: str, media: Media) -> None:
    """Give ``media`` to every logger, at the step of the values that Lightning logs now.

    W&B, TensorBoard and MLflow take it themselves. For another logger it is a file
    ``media/<name>/<step>`` in the folder of the logger's run, and without a logger in
    ``default_root_dir``. Only the first process logs. With ``fast_dev_run`` nothing is logged.

    What a logger raises does not end the fit. It is a warning, the first time for each name.

    Args:
        trainer: of the loggers.
        name: such as ``"gate/heatmap"``. Dashboards make a section of what stands before ``/``.
        media: a figure, a table or a text.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    step, folder = logging_step(trainer), str(trainer.default_root_dir)
    for logger in trainer.loggers:
        if not same_kind(logger, DummyLogger):
            with _warns_of(name, logger):
                sink_of(logger, folder).take(name, media, step)
    if not trainer.loggers:
        with _warns_of(name, trainer):
            Files(folder).take(name, media, step)


@contextmanager
def _warns_of(name: str, owner: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        known = _warned.setdefault(owner, set())
        if name not in known:
            known.add(name)
            rank_zero_warn(
                f"logging {name} with {type(owner).__name__} failed, and training goes on: "
                f"{type(error).__name__}: {error}"
            )


def log_numbers(trainer: Trainer, module: LightningModule, numbers: Mapping[str, float]) -> None:
    """Log numbers of a fit as hyperparameters, besides those of the module and its data.

    Lightning logs the latter later. TensorBoard shows only the hyperparameters that are logged
    first, so it gets all of them now. A run of MLflow refuses other values than those of an earlier
    fit; as for media, a warning says so.

    Args:
        trainer: of the loggers.
        module: that is fitted.
        numbers: by name.
    """
    for logger in trainer.loggers:
        known = _hyperparameters(trainer, module) if same_kind(logger, TensorBoardLogger) else {}
        with _warns_of("the numbers of parameters", logger):
            logger.log_hyperparams({**known, **numbers})


def _hyperparameters(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """What Lightning will log of the module and its data."""
    datamodule = getattr(trainer, "datamodule", None)
    found: dict[str, Any] = {}
    for part in (module, datamodule):
        if part is not None and part._log_hyperparams:
            found |= part.hparams_initial
    found.pop("_class_path", None)  # of Lightning's command line
    return found
