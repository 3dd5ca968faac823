"""The heat map of the gates: a file in the folder of the run, and an image in the loggers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_pelt.callbacks._gate_means import logging_step
from lightning_pelt.reports import figures as plots
from lightning_pelt.utils.same_kind import same_kind

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

HEATMAP = "gate/heatmap"


def show(trainer: Trainer, means: Mapping[str, float], path: str) -> str | None:
    """Draw the gates, write the picture to ``path``, and give it to the loggers.

    A picture must not end a fit. What fails is named in a warning.

    Args:
        trainer: of the loggers.
        means: of the gates, by name.
        path: of the file; a URL of fsspec is allowed.

    Returns:
        ``path`` if the file was written, else None.
    """
    written = None
    with _warns_of("drawing the gates"):
        figure = plots.gate_heatmap(means)
        with _warns_of(f"writing {path}"):
            plots.save(figure, path)
            written = path
        for logger in trainer.loggers:
            with _warns_of(f"logging the heat map to {type(logger).__name__}"):
                _log_image(logger, plots.pixels(figure), logging_step(trainer))
    return written


@contextmanager
def _warns_of(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        rank_zero_warn(f"{what} failed, and training goes on: {type(error).__name__}: {error}")


def _log_image(logger: Any, pixels: Any, step: int) -> None:
    if same_kind(logger, WandbLogger):
        logger.log_image(HEATMAP, [pixels], step=step)
    elif same_kind(logger, TensorBoardLogger):
        logger.experiment.add_image(HEATMAP, pixels, step, dataformats="HWC")
