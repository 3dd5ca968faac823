"""Settings: what a recipe of a search says, checked before anything is trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

# Imported for their short names, as in the command line: `class_path: Classification`.
from lightning_pelt import tasks as _tasks  # noqa: F401
from lightning_pelt.data import TextDataModule
from lightning_pelt.design_space import PATTERNS, Design
from lightning_pelt.design_space.budget import Over
from lightning_pelt.design_space.patterns import Pattern, Stacks
from lightning_pelt.errors import unknown
from lightning_pelt.parser import RecipeParser
from lightning_pelt.search.finals import rival
from lightning_pelt.search.parts import FitSettings, TaskSettings, Wandb, place
from lightning_pelt.search.racing import Racing

SUMMARY = "Find a plan: which methods, in which blocks, for a given number of parameters."
Kind = Literal["racing", "brute_force", "gates"]
# Arguments of the data that change no score, or that the settings give it.
NO_MATTER = frozenset({"backbone", "seed", "num_workers", "holdout"})

# Settings on which, besides the tasks, a cell's score depends, or which cells there are.
DECISIVE = (
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
    """What a recipe of a search says.

    Args:
        backbone: hub id or folder.
        tasks: by name; the score of a design is the mean over them.
        fit: how every cell is trained.
        storage: of the ledger: path of a journal, or URL of a database.
        name: of the search in its ledger.
        method: ``racing``; ``brute_force``, the paper's; or ``gates``, one gated run.
        search_budget: of the designs that are compared: below 1 a share of the backbone's
            parameters, from 1 on a number of them.
        final_budget: of the comparison at the end; None is the search's.
        groups: number of groups of blocks.
        stacks: ``concat`` or ``per_stack``, see :class:`lightning_pelt.Design`.
        over: what an allocation counts, ``blocks`` or ``groups``.
        patterns: groupings to choose from.
        subsets: sets of methods that a group may have, as letters of A, P, B, L; None is all 15.
        accelerator, devices, precision: of each cell's Trainer. A cell takes one device.
        threads: of torch on the CPU while a cell is fitted; None leaves the number as it is.
        workers: processes that the leading one starts to fit cells; 0 leaves it to others.
        holdout: share of the training rows that scores the designs of the search.
        racing: rules of the races.
        designs: for each option of ``brute_force``.
        fresh: blocks on which winners are estimated again.
        final_seeds: of the comparison at the end.
        compare: what the found design is compared with: letters, laid into every block, and S4.
        seed: of the random designs.
        wandb: None logs nothing there.
        output: folder of reports; by default one of the search's name, beside the journal or in
            ``runs/search``.
        folders: of data on the disk: its folder of a task's name takes the place of the hub.

    Raises:
        ValueError: naming the setting that makes no sense, and what it may be.
    """

    backbone: str
    tasks: dict[str, TaskSettings]
    fit: FitSettings
    storage: str = "runs/search/ledger.journal"
    name: str = "search"
    method: Kind = "racing"
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
    wandb: Wandb | None = None
    output: str | None = None
    folders: str | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("there is no task: give `tasks` a name with data at least")
        for name in self.tasks:
            self.data(name)
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout is {self.holdout}, expected a share between 0 and 1")
        for name in ("search_budget", "last_budget"):
            Design(["L"], budget=getattr(self, name))  # refuses what is no budget
        for name, least in {"groups": 1, "designs": 1, "fresh": 2, "threads": 1}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name} is {value}, expected {least} or more")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}, expected 0 or more")
        if not self.final_seeds or min(self.final_seeds) < 0:
            raise ValueError(f"final_seeds is {list(self.final_seeds)}, expected seeds from 0 on")
        for name in self.compare:
            rival(name, self.last_budget)  # refuses what is no plan
        one = self.devices == 1 if isinstance(self.devices, int) else len(self.devices) == 1
        if not one:
            raise ValueError(
                f"devices is {self.devices}, but a cell is trained on one: give 1 or [NUMBER], and "
                "start a worker for each device"
            )

    @property
    def last_budget(self) -> float:
        """Of the comparison at the end."""
        return self.search_budget if self.final_budget is None else self.final_budget

    @property
    def folder(self) -> Path:
        """Where reports go."""
        if self.output is not None:
            return Path(self.output)
        parent = Path("runs/search") if "://" in self.storage else Path(self.storage).parent
        return parent / self.name

    def task(self, name: str) -> TaskSettings:
        """A task by its name.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in self.tasks:
            raise unknown("task", name, self.tasks)
        return self.tasks[name]

    def data(self, name: str, holdout: float | None = None) -> TextDataModule:
        """A new data module of a task, which has not read anything yet.

        Args:
            name: of the task.
            holdout: see :class:`TextDataModule`.

        Raises:
            FileNotFoundError: the task's folder has no file of one of its splits.
            ValueError: ``folders`` are given and the data reads no folder.
        """
        make = self.task(name).data
        where = {} if self.folders is None else place(make(self.backbone), Path(self.folders, name))
        return make(self.backbone, holdout=holdout, **where)  # type: ignore[call-arg]

    def cells_depend_on(self) -> dict[str, Any]:
        """All that decides what a cell scores and which cells there are, as plain data.

        Two workers of one ledger must agree on it. Where the data lies is not part of it, if
        ``folders`` says it.
        """
        found = {name: _plain(getattr(self, name)) for name in DECISIVE}
        unchanged = dataclasses.replace(self, folders=None)
        found["tasks"] = {
            name: {
                "data": _described(data := unchanged.data(name), dict(data.hparams)),
                "task": _described(task.task, dataclasses.asdict(task.task)),  # type: ignore[call-overload]
                "metric": task.monitor,
            }
            for name, task in self.tasks.items()
        }
        return json.loads(json.dumps(found))


class Asked(NamedTuple):
    """What a command line asks for: the settings, and whether to be a mere worker."""

    settings: Settings
    worker: bool


def parse(args: Sequence[str]) -> Asked:
    """What the command line of ``lightning-pelt search`` says.

    Args:
        args: without the command's name: ``--config RECIPE [--worker] [--OPTION VALUE ...]``.

    Raises:
        SystemExit: with status 2 for what makes no sense, which has been said then; with 0 for
            ``--help``.
    """
    usage = "%(prog)s --config RECIPE [--worker] [--OPTION VALUE ...]"
    parser = RecipeParser(prog="lightning-pelt search", usage=usage, description=SUMMARY)
    parser.add_argument("--config", action="config", help="a recipe, recipes/search_*.yaml")
    parser.add_argument("--worker", action="store_true", help="fit what others ask for")
    parser.add_class_arguments(Settings)
    given = parser.parse_args(list(args))
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        made = instantiate(given)
        options = {each.name: made[each.name] for each in dataclasses.fields(Settings)}
        return Asked(Settings(**options), made.worker)
    except (ValueError, OSError) as error:
        parser.error(str(error), error)


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]


def _described(made: object, arguments: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in arguments.items() if name not in NO_MATTER}
    return {"class_path": f"{type(made).__module__}.{type(made).__qualname__}", "init_args": kept}
