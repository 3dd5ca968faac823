"""Sections of a search recipe: a task, the settings of each fit, and Weights & Biases."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from lightning_pelt.callbacks.trunk_cache import DEFAULT_BYTES, TrunkCache
from lightning_pelt.data import RowsDataModule
from lightning_pelt.data._file_rows import READERS
from lightning_pelt.data.media import MediaDataModule
from lightning_pelt.data.table import TableDataModule
from lightning_pelt.plans.design_space.strategies import STRATEGIES, template
from lightning_pelt.tasks import Classification, Task
from lightning_pelt.tasks.base import LOWER_IS_BETTER
from lightning_pelt.utils.errors import unknown

# Parameter groups for which a recipe can set a learning rate.
GROUPS = (*(template(letter).name for letter in STRATEGIES), "gate", "head")


@dataclass(frozen=True)
class TaskSettings:
    """A task of the search.

    Args:
        data: builds the data module from the name of the backbone; in a recipe ``class_path`` and
            ``init_args`` of a :class:`RowsDataModule`.
        task: head, loss and metrics; by default single-label classification.
        metric: the metric of the task that is the score; by default its first. Higher must be
            better.

    Raises:
        ValueError: the task does not have the metric, or lower values of it are better.

    Example:
        >>> from lightning_pelt import GLUE, Classification
        >>> settings = TaskSettings(lambda backbone, **options: GLUE(backbone, "sst2", **options))
        >>> settings.monitor
        'accuracy'
    """

    data: Callable[[str], RowsDataModule]
    # Not a Classification: a recipe that names another task would keep the default's metrics.
    task: Task = None  # type: ignore[assignment]
    metric: str | None = None

    def __post_init__(self) -> None:
        if self.task is None:
            object.__setattr__(self, "task", Classification())
        metrics = getattr(self.task, "metrics", (self.task.monitor,))
        if self.monitor not in metrics:
            raise unknown(f"metric of {type(self.task).__name__}", self.metric, metrics)
        if self.monitor in LOWER_IS_BETTER:
            better = [name for name in metrics if name not in LOWER_IS_BETTER]
            raise ValueError(
                f"metric {self.monitor!r} is better when lower, but a search maximises its score: "
                "take " + (" or ".join(better) if better else "a task with another metric")
            )

    @property
    def monitor(self) -> str:
        """Name of the metric that is the score."""
        return self.task.monitor if self.metric is None else self.metric


@dataclass(frozen=True)
class FitSettings:
    """Settings of each fit. Give either ``max_epochs`` or ``max_steps``.

    Args:
        max_epochs: number of passes over the training rows.
        max_steps: number of optimizer steps.
        lr: learning rate of every parameter group that ``lrs`` does not name.
        lrs: learning rates by parameter group: ``adapter``, ``prefix``, ``bitfit``, ``lora``,
            ``gate`` and ``head``. Groups that a plan does not have are ignored.
        warmup: see :class:`lightning_pelt.PELTModule`.
        weight_decay: see :class:`lightning_pelt.PELTModule`.
        gradient_clip_val: maximum norm of the gradients; None does not clip.
        base_dropout: see :class:`lightning_pelt.PELTModule`.

    Raises:
        ValueError: both or neither of ``max_epochs`` and ``max_steps`` are given, a parameter group
            is unknown, or a learning rate is not a positive number.

    Example:
        >>> FitSettings(max_epochs=1, lr=1e-3, lrs={"prefix": 1e-2}).lrs
        {'prefix': 0.01}
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
                name = f"fit.lrs.{group}" if group else "fit.lr"
                raise ValueError(f"{name} is {rate}, expected a finite learning rate above 0")


@dataclass(frozen=True)
class WandbSettings:
    """Settings of Weights & Biases.

    Args:
        project: name of the project.
        offline: store the run on the disk, to be uploaded later with ``wandb sync``.
        fits: log each fit as a run too, with its losses, gates and learning rates, in a group with
            the run of the search (``--wandb.fits true``). By default off, since a search has
            hundreds of fits, and the run of the search has a row for each.

    Example:
        >>> WandbSettings(offline=True)
        WandbSettings(project='lightning-pelt', offline=True, fits=False)
    """

    project: str = "lightning-pelt"
    offline: bool = False
    fits: bool = False


@dataclass(frozen=True)
class TrunkCacheSettings:
    """Where all jobs keep the hidden states of frozen blocks, see :class:`TrunkCache`.

    Jobs whose designs leave the lowest blocks untouched compute them once per example: those of one
    lowest block and the same rows share what is in the folder. Other jobs run as without it.

    Args:
        folder: of the files.
        max_bytes: of all files in ``folder``.

    Raises:
        ValueError: ``max_bytes`` is not positive, or ``folder`` is a file.

    Example:
        >>> TrunkCacheSettings("runs/search/trunk").max_bytes
        10737418240
    """

    folder: str
    max_bytes: int = DEFAULT_BYTES

    def __post_init__(self) -> None:
        self.callback()

    def callback(self) -> TrunkCache:
        """The callback of one job."""
        return TrunkCache(self.folder, self.max_bytes)


def local_files(data: RowsDataModule, folder: Path) -> dict[str, Any]:
    """The arguments with which ``data`` reads ``folder`` instead of the hub.

    Raises:
        FileNotFoundError: the folder has no file for a split.
        ValueError: the data module cannot read a folder.
    """
    if isinstance(data, TableDataModule | MediaDataModule):
        if data.sources.dataset is None:
            return {}  # the recipe names files already
        files = {split: _file(folder, source) for split, source in data.sources.locations.items()}
        return {"dataset": None, "config": None, **files}
    if "folder" not in inspect.signature(type(data)).parameters:
        raise ValueError(
            f"{type(data).__name__} cannot read a folder such as {str(folder)!r}: use a data "
            "module that can, or leave `folders` out"
        )
    return {"folder": str(folder)}


def _file(folder: Path, split: str) -> str:
    for suffix in READERS:
        if (file := folder / f"{split}{suffix}").is_file():
            return str(file)
    raise FileNotFoundError(f"{folder} has no {split} rows: expected {split}.jsonl, .csv, ...")
