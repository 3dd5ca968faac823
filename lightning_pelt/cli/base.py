"""``PELTCLI``: a recipe, and the command line over it, as model, data and trainer."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

# Imported for their short names: `class_path: LoRA`, `--trainer.callbacks+=GateMonitor`.
import lightning_pelt
from lightning_pelt import methods, tasks  # noqa: F401
from lightning_pelt.callbacks import WritePredictions
from lightning_pelt.cli.parser import SuggestingParser
from lightning_pelt.data import TextDataModule
from lightning_pelt.training.module import PELTModule

DESCRIPTION = "Gated parameter-efficient tuning of Hugging Face transformers."
SUMMARIES = {
    "fit": "Train the plan of a recipe.",
    "validate": "Score a checkpoint on the validation rows.",
    "test": "Score a checkpoint on the test rows.",
    "predict": "Write a checkpoint's predictions for new rows.",
}


class PELTCLI(LightningCLI):
    """LightningCLI for :class:`PELTModule`: links the options that data and model share.

    ``--test_after_fit`` tests the best checkpoint after a fit. Subclasses add options and commands
    as those of LightningCLI do; pass them to :func:`main`.

    Attributes:
        prog: name of the command in its help.
        usage: short usage of a command; argparse's would list a hundred options.

    Example::

        from lightning_pelt.cli import PELTCLI
        from lightning_pelt.cli.base import main

        class MyCLI(PELTCLI):
            def add_arguments_to_parser(self, parser):
                super().add_arguments_to_parser(parser)
                parser.add_argument("--note", type=str | None)

        main(["fit", "--config=recipe.yaml", "--note=first"], MyCLI)
    """

    prog: ClassVar[str] = "lightning-pelt"
    usage: ClassVar[str] = "%(prog)s [--config RECIPE] [--OPTION VALUE ...]"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="Test the best checkpoint after fit."
        )
        parser.add_lightning_class_args(WritePredictions, "predictions")
        parser.link_arguments("model.backbone", "data.init_args.backbone")
        parser.link_arguments(
            "data", "model.labels", compute_fn=self.labels, apply_on="instantiate"
        )

    def labels(self, data: TextDataModule) -> list[str] | None:
        """The label names by id: those of the checkpoint, if there is one, else those of the data.

        Raises:
            ValueError: the data has other labels than the checkpoint, or another order.
        """
        saved = self._get(self.config, "model").get("labels")
        if saved is None:
            return data.labels
        if self.subcommand != "predict" and data.labels != saved:
            raise ValueError(
                f"the checkpoint was trained on the labels {saved}, and the data has {data.labels}"
                ": use the data it was trained on, or give that order with --data.labels"
            )
        return saved

    def after_fit(self) -> None:
        if self.config["fit"]["test_after_fit"]:
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            self.trainer.test(
                self.model, datamodule=self.datamodule, ckpt_path="best" if best else None
            )


class RecipeCommand(PELTCLI):
    """A command that takes the options of ``fit`` and more: ``main(["fit", *args], kind)``.

    Attributes:
        summary: what the command does, in a sentence.
    """

    summary: ClassVar[str]

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": PELTCLI.subcommands()["fit"]}

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        own = {"usage": self.usage, "description": self.summary}
        super().setup_parser(add_subcommands, {**main_kwargs, **own}, {"fit": own})
        if add_subcommands:
            self._subcommand_parsers["fit"].prog = self.prog

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        with warnings.catch_warnings():
            # Lightning warns of arguments besides sys.argv, which names the command itself.
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().parse_arguments(parser, args)


def main(args: ArgsType = None, kind: type[PELTCLI] = PELTCLI, run: bool = True) -> PELTCLI:
    """Run a command line with the commands ``fit``, ``validate``, ``test`` and ``predict``.

    Args:
        args: arguments instead of those of the process.
        kind: a subclass with more options or commands.
        run: whether to run a command; otherwise data, model and trainer are built.
    """
    commands = {
        name: {
            "usage": kind.usage,
            **({"description": SUMMARIES[name]} if name in SUMMARIES else {}),
        }
        for name in kind.subcommands()
    }
    options: dict[str, Any] = {
        "prog": kind.prog,
        "version": lightning_pelt.__version__,
        "description": DESCRIPTION,
        **(commands if run else {"usage": kind.usage}),
    }
    return kind(
        PELTModule,
        TextDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=42,
        save_config_kwargs={"overwrite": True},
        parser_class=SuggestingParser,
        parser_kwargs=options,
        args=args,
        run=run,
    )
