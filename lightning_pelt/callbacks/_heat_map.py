"""The pictures of the gates: a file in the folder of the run, and a picture in the loggers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_pelt.callbacks._media import log_media
from lightning_pelt.reports import figures as plots
from lightning_pelt.reports.gate_history import GateHistory
from lightning_pelt.reports.gates_over_time import gates_over_time

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from matplotlib.figure import Figure

HEATMAP, OVER_TIME = "gate/heatmap", "gate/over_time"


def show(trainer: Trainer, means: Mapping[str, float], path: str) -> str | None:
    """Draw the means of the gates, write the picture to ``path``, and give it to the loggers.

    A picture must not end a fit. What fails is named in a warning.

    Args:
        trainer: of the loggers.
        means: of the gates, by name.
        path: of the file; a URL of fsspec is allowed.

    Returns:
        ``path`` if the file was written, else None.
    """
    return _show(trainer, HEATMAP, lambda: plots.gate_heatmap(means), path)


def show_over_time(
    trainer: Trainer, history: GateHistory, pruned: Sequence[str], path: str
) -> str | None:
    """The same with the gates over time.

    Args:
        trainer: of the loggers.
        history: of the gates, two readings or more.
        pruned: names of permanently closed gates.
        path: of the file.
    """
    return _show(trainer, OVER_TIME, lambda: gates_over_time(history, pruned=pruned), path)


def _show(trainer: Trainer, name: str, draw: Callable[[], Figure], path: str) -> str | None:
    written = None
    with _warns_of("drawing the gates"):
        figure = draw()
        with _warns_of(f"writing {path}"):
            plots.save(figure, path)
            written = path
        if trainer.loggers:  # without one, the picture at ``path`` is the only one
            log_media(trainer, name, figure)
    return written


@contextmanager
def _warns_of(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        rank_zero_warn(f"{what} failed, and training goes on: {type(error).__name__}: {error}")
