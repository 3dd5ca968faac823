"""``lightning-pelt plan``: the parameters of a recipe's plan, block by block, before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lightning_pelt.cli import base
from lightning_pelt.cli.errors import one_line_errors
from lightning_pelt.cli.overview import OTHERS
from lightning_pelt.data._glue_tasks import TASKS
from lightning_pelt.reports import figures
from lightning_pelt.reports.plan_breakdown import Breakdown, break_down
from lightning_pelt.reports.plan_figure import plan_picture
from lightning_pelt.reports.plan_table import describe, format_breakdown
from lightning_pelt.tasks import Task
from lightning_pelt.training.module import PELTModule

PROG = "lightning-pelt plan"
# Labels if only the data has them. The parameters of the methods do not depend on them.
PLACEHOLDERS = ["0", "1"]


def main(args: Sequence[str]) -> None:
    """Run the command; print what the user can correct in a line and exit with status 2.

    Args:
        args: the options of ``fit``, and ``--picture``.
    """
    with one_line_errors(PROG):
        base.main(["fit", *args], ShowPlan)


class ShowPlan(base.RecipeCommand):
    """Reads a recipe as ``fit`` does, and builds only the model."""

    prog = PROG
    trains = False
    usage = f"{PROG} --config RECIPE [--OPTION VALUE ...] [--picture FILE.png]"
    summary = OTHERS["plan"]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--picture",
            type=str | None,
            help="File of the picture. By default plan.png in trainer.default_root_dir.",
        )

    def instantiate_classes(self) -> None:
        """Build the model without the data, the loggers and the devices of the recipe."""
        given = self.config.fit
        self.known_labels, self.source = known_labels(given)
        self.model = base.build_model(given.model, self.known_labels or PLACEHOLDERS)
        if self.known_labels is None and not takes_labels(self.model.task):
            self.model.labels = None
        # LightningCLI reads these before it calls `fit`.
        self.config_init, self.datamodule = {"fit": {}}, None
        self.trainer = self.trainer_class  # type: ignore[assignment]

    def fit(self, model: PELTModule) -> None:
        """Attach the plan, print its table, and draw it if it has methods."""
        model.configure_model()
        assert model.attachment is not None
        found = break_down(model.attachment)
        print(f"\n{describe(model.plan, found)}\non {model.backbone}\n")
        print(format_breakdown(found, head=self._head(model, found)), flush=True)
        if not found.methods:
            return
        title = f"{type(model.plan).__name__} on {model.backbone.rstrip('/').rpartition('/')[2]}"
        figure = plan_picture(found, title=title)
        print(f"\npicture: {figures.save(figure, self._file())}")

    def after_fit(self) -> None:
        """Do not test: no fit has taken place."""

    def _file(self) -> Path:
        given = self.config.fit
        if given.picture is not None:
            return Path(given.picture)
        return Path(given.trainer.default_root_dir or ".") / "plan.png"

    def _head(self, model: PELTModule, found: Breakdown) -> str:
        """The head's parameters, and where its number of labels is from."""
        if not found.head:
            return "none"
        if not takes_labels(model.task):
            return f"{found.head:,}"
        if self.known_labels is not None:
            return f"{found.head:,}, for {len(self.known_labels)} labels ({self.source})"
        assert model.attachment is not None
        own = any(module.sized_by_labels for module in model.attachment.all_submodules)
        return "not counted: the number of labels is in the data, which is not read" + (
            f"; the heads of the profiles are counted for {len(PLACEHOLDERS)}" if own else ""
        )


def takes_labels(task: Task) -> bool:
    """Whether the head of a task has an output for each label."""
    try:
        task.head(None)
    except ValueError:
        return True
    return False


def known_labels(given: Namespace) -> tuple[list[str] | None, str]:
    """The labels that a recipe names without its data being read, and their source.

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
