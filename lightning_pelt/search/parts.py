"""The parts of a recipe: what it says of each task, and of how every cell is trained."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from lightning_pelt.data import TextDataModule
from lightning_pelt.data.reading import READERS
from lightning_pelt.data.tables import TableDataModule
from lightning_pelt.design_space.costs import STRATEGIES, template
from lightning_pelt.errors import unknown
from lightning_pelt.tasks import Classification, Task
from lightning_pelt.tasks.base import LOWER_IS_BETTER

# Optimizer groups that a recipe may give a rate of their own.
GROUPS = (*(template(letter).name for letter in STRATEGIES), "gate", "head")


@dataclass(frozen=True)
class TaskSettings:
    """A task of the search.

    Args:
        data: makes the data module from the backbone's name; in a recipe ``class_path`` and
            ``init_args`` of a :class:`TextDataModule`.
        task: head, loss and metrics; by default single-label classification.
        metric: that scores it, of the task's metrics; by default the first. Higher is better.

    Raises:
        ValueError: a metric that the task does not have, or of which less is better.
    """

    data: Callable[[str], TextDataModule]
    task: Task = field(default_factory=Classification)
    metric: str | None = None

    def __post_init__(self) -> None:
        metrics = getattr(self.task, "metrics", (self.task.monitor,))
        if self.monitor not in metrics:
            raise unknown(f"metric of {type(self.task).__name__}", self.metric, metrics)
        if self.monitor in LOWER_IS_BETTER:
            better = [name for name in metrics if name not in LOWER_IS_BETTER]
            raise ValueError(
                f"metric {self.monitor!r} is better when lower, and the scores of a search are "
                "points of which more is better: take "
                + (" or ".join(better) if better else "a task with another metric")
            )

    @property
    def monitor(self) -> str:
        """Name of the metric that scores it."""
        return self.task.monitor if self.metric is None else self.metric


@dataclass(frozen=True)
class FitSettings:
    """How every cell is trained.

    Args:
        max_epochs: passes over the training rows; or
        max_steps: optimizer steps.
        lr: learning rate of every group that ``lrs`` does not name.
        lrs: learning rates by group: ``adapter``, ``prefix``, ``bitfit``, ``lora``, ``gate`` and
            ``head``. A plan takes those of the groups that it has.
        warmup: see :class:`lightning_pelt.PELTModule`; so are ``weight_decay`` and
            ``base_dropout``.
        gradient_clip_val: norm to which gradients are clipped; None leaves them.

    Raises:
        ValueError: neither epochs nor steps, or both; a group that does not exist; a rate that is
            no positive number.
    """

    max_epochs: int | None = None
    max_steps: int | None = None
    lr: float = 1e-3
    lrs: dict[str, float] = field(default_factory=dict)
    warmup: float = 0.0
    weight_decay: float = 0.0
    gradient_clip_val: float | None = None
    base_dropout: bool = True

    def __post_init__(self) -> None:
        given = [value for value in (self.max_epochs, self.max_steps) if value is not None]
        if len(given) != 1 or given[0] < 1:
            raise ValueError(
                f"fit.max_epochs is {self.max_epochs} and fit.max_steps is {self.max_steps}: give "
                "one of them, 1 or more"
            )
        for group, rate in {"": self.lr, **self.lrs}.items():
            if group and group not in GROUPS:
                raise unknown("parameter group in fit.lrs", group, GROUPS)
            if not (isfinite(rate) and rate > 0):
                raise ValueError(f"the learning rate {rate} is no positive number")


@dataclass(frozen=True)
class Wandb:
    """Where to log to in Weights & Biases.

    Args:
        project: its name.
        offline: keep what is logged on the disk, to be uploaded later.
    """

    project: str = "lightning-pelt"
    offline: bool = False


def place(data: TextDataModule, folder: Path) -> dict[str, Any]:
    """The arguments with which ``data`` reads ``folder`` and not the hub."""
    if isinstance(data, TableDataModule):
        if data.dataset is None:
            return {}  # it names files
        files = {split: _file(folder, place) for split, place in data.places.items()}
        return {"dataset": None, "config": None, **files}
    if "folder" not in inspect.signature(type(data)).parameters:
        raise ValueError(
            f"{type(data).__name__} reads no folder such as {str(folder)!r}: take data that does, "
            "or leave `folders` out"
        )
    return {"folder": str(folder)}


def _file(folder: Path, split: str) -> str:
    for suffix in READERS:
        if (file := folder / f"{split}{suffix}").is_file():
            return str(file)
    raise FileNotFoundError(f"{folder} has no {split} rows: expected {split}.jsonl, .csv, ...")
