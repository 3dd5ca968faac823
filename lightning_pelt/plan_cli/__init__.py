"""``lightning-pelt plan``: what the plan of a recipe comes to on its model, before any training."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from lightning_pelt import cli, plots
from lightning_pelt.data.glue_tasks import TASKS
from lightning_pelt.module import PELTModule
from lightning_pelt.plan_cli.breakdown import Breakdown, break_down
from lightning_pelt.plan_cli.picture import plan_picture
from lightning_pelt.plan_cli.table import describe, tabulate
from lightning_pelt.profiles.heads import Heads

PROG = "lightning-pelt plan"
SUMMARY = "Show what the plan of a recipe comes to, block by block; nothing is trained."
MISTAKES = (ValueError, OSError, ModuleNotFoundError, MisconfigurationException)
STAND_IN = ["0", "1"]  # where only the data knows the labels, which no method depends on


def main(args: Sequence[str]) -> None:
    """Print the plan of a recipe; what the user can mend is said in a line, with exit status 2.

    Args:
        args: the options of ``fit``, and ``--picture``.
    """
    # Lightning warns of arguments that sys.argv has too, which it needs to start others.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    try:
        cli.main(["fit", *args], Show)
    except MISTAKES as error:
        print(f"{PROG}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error


class Show(cli.PELTCLI):
    """Reads a recipe as ``fit`` does, and makes nothing of it but the model."""

    prog = PROG
    usage = f"{PROG} --config RECIPE [--option VALUE ...] [--picture FILE.png]"

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return super().init_parser(**{**kwargs, "description": SUMMARY})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--picture",
            type=str | None,
            help="file of the picture; by default plan.png in trainer.default_root_dir",
        )

    def instantiate_classes(self) -> None:
        """The model alone: neither the data nor what a trainer asks for need be there."""
        given = self.config.fit
        self.known_labels, self.source = labels_of(given)
        options = given.model.clone()
        options.labels = self.known_labels or STAND_IN
        parser = LightningArgumentParser()
        parser.add_lightning_class_args(PELTModule, "model")
        self.model = parser.instantiate_classes(Namespace(model=options)).model
        # What runs `fit` below asks for these; only their names are looked at.
        self.config_init, self.datamodule = {"fit": {}}, None
        self.trainer = self.trainer_class  # type: ignore[assignment]

    def fit(self, model: PELTModule) -> None:
        """Attach the plan, print what it comes to, and draw it where it has methods."""
        model.configure_model()
        assert model.attachment is not None
        found = break_down(model.attachment)
        print(f"\n{describe(model.plan, found)}\non {model.backbone}\n")
        print(tabulate(found, head=self._head(model, found)), flush=True)
        if not found.methods:
            return
        title = f"{type(model.plan).__name__} on {model.backbone.rstrip('/').rpartition('/')[2]}"
        figure = plan_picture(found, title=title)
        print(f"\npicture: {plots.save(figure, self._file())}")

    def after_fit(self) -> None:
        """Nothing was fitted, so nothing is tested."""

    def _file(self) -> Path:
        given = self.config.fit
        if given.picture is not None:
            return Path(given.picture)
        return Path(given.trainer.default_root_dir or ".") / "plan.png"

    def _head(self, model: PELTModule, found: Breakdown) -> str:
        """The head's parameters, and how they were counted."""
        if not found.head:
            return "none"
        if model.task.head(STAND_IN) == model.task.head([*STAND_IN, "2"]):
            return f"{found.head:,}"
        if self.known_labels is not None:
            return f"{found.head:,}, for {len(self.known_labels)} labels ({self.source})"
        assert model.attachment is not None
        modules = [m for each in model.attachment.submodules.values() for m in each]
        own = any(isinstance(module, Heads) for module in modules)
        return "not counted: only the data, which is not read, says how many labels there are" + (
            f"; the profiles' own heads are counted for {len(STAND_IN)}" if own else ""
        )


def labels_of(given: Any) -> tuple[list[str] | None, str]:
    """The labels that a recipe names without its data being read, and where it does.

    Args:
        given: the parsed options of ``fit``.
    """
    if saved := given.model.get("labels"):
        return saved, "the checkpoint's"
    data = given.get("data") or Namespace()
    options = data.get("init_args") or Namespace()
    if options.get("labels"):
        return [str(label) for label in options.labels], "data.labels"
    known = data.get("class_path", "").rpartition(".")[2] == "GLUE"
    if known and TASKS[options.task].labels:
        return list(TASKS[options.task].labels or ()), f"GLUE's {options.task}"
    return None, ""
