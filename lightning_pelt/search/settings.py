"""Settings of a search, as a recipe gives them; all are checked before the first fit."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jsonargparse import ArgumentParser, Namespace

# Imported for the short names of classes in recipes: `class_path: Classification`.
from lightning_pelt import tasks as _tasks  # noqa: F401
from lightning_pelt.data import RowsDataModule
from lightning_pelt.plans.design_space import PATTERNS, Design
from lightning_pelt.plans.design_space.allocation import Over
from lightning_pelt.plans.design_space.patterns import Pattern, Stacks
from lightning_pelt.search.reference_designs import reference_design
from lightning_pelt.search.selection.rules import Racing
from lightning_pelt.search.task_settings import (
    FitSettings,
    TaskSettings,
    TrunkCacheSettings,
    WandbSettings,
    local_files,
)
from lightning_pelt.utils.errors import unknown

SUMMARY = "Find a plan: which methods, in which blocks, for a given number of parameters."
SearchMethod = Literal["racing", "brute_force", "gates"]
# Arguments of data modules that do not affect a score, or that the settings set.
IGNORED_ARGUMENTS = frozenset({"backbone", "seed", "num_workers", "holdout"})
# Settings that, besides the tasks, determine which jobs there are and what they score.
FINGERPRINT = (
    "backbone",
    "fit",
    "search_budget",
    "groups",
    "stacks",
    "over",
    "patterns",
    "subsets",
    "precision",
    "holdout",
    "seed",
)


@dataclass(frozen=True)
class Settings:
    """Settings of a search.

    Args:
        backbone: hub id or folder of the backbone.
        tasks: tasks by name. The score of a design is the mean over the tasks.
        fit: settings of each fit.
        storage: where the ledger is stored: path of a journal, or URL of a database.
        name: name of the search in its ledger.
        method: ``racing``; ``brute_force``, the paper's protocol; or ``gates``, one gated run.
        search_budget: budget of the designs that the search compares: below 1 a share of the
            backbone's parameters, from 1 on a number of parameters.
        final_budget: budget of the final comparison; None is ``search_budget``.
        groups: number of groups of transformer blocks.
        stacks: ``concat`` or ``per_stack``, see :class:`lightning_pelt.Design`.
        over: what an allocation counts, ``blocks`` or ``groups``.
        patterns: groupings to choose from.
        subsets: sets of methods that a group may have, as letters of A (adapter), P (prefix),
            B (BitFit) and L (LoRA); None is all 15.
        accelerator: of each fit's Trainer.
        devices: of each fit's Trainer; a fit uses one device.
        precision: of each fit's Trainer.
        threads: number of CPU threads of torch during a fit; None leaves it unchanged.
        workers: number of worker processes that the controller starts; 0 if workers are started
            elsewhere.
        holdout: share of the training rows that scores the designs of the search.
        racing: rules of the races.
        designs: number of designs for each option of ``brute_force``.
        fresh: number of fresh search blocks on which each winner is compared again.
        final_seeds: seeds of the final comparison.
        compare: reference designs of the final comparison: letters of methods that go into every
            block, or ``S4``.
        seed: seed of the random designs.
        trunk_cache: folder in which the jobs keep the hidden states of frozen blocks below their
            designs; None keeps none. Scores do not depend on it.
        wandb: settings of Weights & Biases; None logs nothing.
        output: folder of reports; by default named like the search, beside the journal or in
            ``runs/search``.
        folders: folder of local data; its subfolders named like the tasks replace the hub.

    Raises:
        ValueError: a setting is invalid; the message names it and the valid values.

    Example:
        >>> from lightning_pelt import GLUE
        >>> settings = Settings(
        ...     backbone="sentence-transformers/all-MiniLM-L6-v2",
        ...     tasks={"sst2": TaskSettings(lambda name, **options: GLUE(name, "sst2", **options))},
        ...     fit=FitSettings(max_epochs=1, lr=3e-3),
        ...     racing=Racing(cap=20),
        ... )
        >>> settings.folder.as_posix()
        'runs/search/search'
    """

    backbone: str
    tasks: dict[str, TaskSettings]
    fit: FitSettings
    storage: str = field(default="runs/search/ledger.journal", repr=False)  # may have a password
    name: str = "search"
    method: SearchMethod = "racing"
    search_budget: float = 0.005
    final_budget: float | None = None
    groups: int = 4
    stacks: Stacks = "concat"
    over: Over = "blocks"
    patterns: tuple[Pattern, ...] = PATTERNS
    subsets: tuple[str, ...] | None = None
    accelerator: str = "auto"
    devices: int | list[int] = 1
    precision: str = "32-true"
    threads: int | None = None
    workers: int = 1
    holdout: float = 0.1
    racing: Racing = field(default_factory=Racing)
    designs: int = 100
    fresh: int = 8
    final_seeds: tuple[int, ...] = (0, 1, 2)
    compare: tuple[str, ...] = ("L", "A", "P", "B", "S4")
    seed: int = 0
    trunk_cache: TrunkCacheSettings | None = None
    wandb: WandbSettings | None = None
    output: str | None = None
    folders: str | None = None

    def __post_init__(self) -> None:
        self._check_tasks()
        self._check_numbers()
        if self.trunk_cache is not None and self.fit.base_dropout:
            raise ValueError(
                "trunk_cache is given and fit.base_dropout is true: with dropout, frozen blocks "
                "return other hidden states in every step. Set fit.base_dropout to false, or leave "
                "trunk_cache out"
            )
        for budget in (self.search_budget, self.comparison_budget):
            Design(["L"], budget=budget)  # raises if the budget is invalid
        for name in self.compare:
            reference_design(name, self.comparison_budget)  # raises if the name is unknown
        one = self.devices == 1 if isinstance(self.devices, int) else len(self.devices) == 1
        if not one:
            raise ValueError(
                f"devices is {self.devices}, but a fit uses one device: give 1 or [NUMBER], and "
                "start a worker for each device"
            )

    def _check_tasks(self) -> None:
        if not self.tasks:
            raise ValueError("tasks is empty: give at least one task, a name with its data")
        for name in self.tasks:
            self.data(name)

    def _check_numbers(self) -> None:
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout is {self.holdout}, expected a share between 0 and 1")
        least = {"groups": 1, "designs": 1, "fresh": 2, "threads": 1, "workers": 0}
        for name, minimum in least.items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise ValueError(f"{name} is {value}, expected {minimum} or more")
        if not self.final_seeds or min(self.final_seeds) < 0:
            raise ValueError(f"final_seeds is {list(self.final_seeds)}, expected seeds from 0 on")

    @property
    def comparison_budget(self) -> float:
        """Budget of the final comparison."""
        return self.search_budget if self.final_budget is None else self.final_budget

    @property
    def folder(self) -> Path:
        """Folder of the reports."""
        if self.output is not None:
            return Path(self.output)
        parent = Path("runs/search") if "://" in self.storage else Path(self.storage).parent
        return parent / self.name

    def task(self, name: str) -> TaskSettings:
        """A task by its name.

        Raises:
            ValueError: there is no task of this name.
        """
        if name not in self.tasks:
            raise unknown("task", name, self.tasks)
        return self.tasks[name]

    def data(self, name: str, holdout: float | None = None) -> RowsDataModule:
        """A new data module of a task; it reads nothing yet.

        Args:
            name: of the task.
            holdout: see :class:`RowsDataModule`.

        Raises:
            FileNotFoundError: the task's folder has no file for a split.
            ValueError: ``folders`` is given and the data module cannot read a folder.
        """
        make = self.task(name).data
        source: dict[str, Any] = {}
        if self.folders is not None:
            source = local_files(make(self.backbone), Path(self.folders, name))
        return make(self.backbone, holdout=holdout, **source)  # type: ignore[call-arg]

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the jobs and their scores, as plain data.

        All processes of a ledger must agree on it. It does not depend on ``folders``.
        """
        found = {name: _plain(getattr(self, name)) for name in FINGERPRINT}
        hub = dataclasses.replace(self, folders=None)
        found["tasks"] = {
            name: {
                "data": _describe(data := hub.data(name), dict(data.hparams)),
                "task": _describe(task.task, dataclasses.asdict(task.task)),  # type: ignore[call-overload]
                "metric": task.monitor,
            }
            for name, task in self.tasks.items()
        }
        return json.loads(json.dumps(found))


class Request(NamedTuple):
    """A parsed command line: the settings, and whether this process is only a worker."""

    settings: Settings
    worker: bool


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of ``lightning-pelt search``: ``--config``, ``--worker`` and Settings."""
    parser.add_argument("--config", action="config", help="a recipe, recipes/search_*.yaml")
    parser.add_argument("--worker", action="store_true", help="only run jobs of the search")
    parser.add_class_arguments(Settings)


def from_namespace(parser: ArgumentParser, given: Namespace) -> Request:
    """The request in the arguments that ``parser`` parsed.

    Args:
        parser: a parser that :func:`add_arguments` was called on.
        given: its output.

    Raises:
        SystemExit: a setting is invalid. ``parser.error`` has printed the reason; the exit status
            is 2.
    """
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        made = instantiate(given)
        options = {each.name: made[each.name] for each in dataclasses.fields(Settings)}
        return Request(Settings(**options), made.worker)
    except (ValueError, OSError) as error:
        parser.error(str(error), error)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


def _describe(made: object, arguments: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in arguments.items() if name not in IGNORED_ARGUMENTS}
    return {"class_path": f"{type(made).__module__}.{type(made).__qualname__}", "init_args": kept}
