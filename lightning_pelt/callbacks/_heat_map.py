"""The heat map of the gates: a file in the folder of the run, and a picture in the loggers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_pelt.callbacks._media import log_media
from lightning_pelt.reports import figures as plots

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
        if trainer.loggers:  # without one, the picture at ``path`` is the only one
            log_media(trainer, HEATMAP, figure)
    return written


@contextmanager
def _warns_of(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        rank_zero_warn(f"{what} failed, and training goes on: {type(error).__name__}: {error}")
