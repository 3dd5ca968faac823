"""``lightning-pelt``: fit, validate, test and predict from YAML recipes."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

# Imported for their short names: `class_path: LoRA`, `--trainer.callbacks+=GateMonitor`.
import lightning_pelt
from lightning_pelt import methods, tasks  # noqa: F401
from lightning_pelt.callbacks import WritePredictions
from lightning_pelt.data import TextDataModule
from lightning_pelt.module import PELTModule
from lightning_pelt.parser import SuggestingParser


class PELTCLI(LightningCLI):
    """Links what data and model share, and tests after fitting where asked to."""

    prog: ClassVar[str] = "lightning-pelt"
    # A usage that lists a hundred options would bury what is wrong with one of them.
    usage: ClassVar[str] = "%(prog)s [--config RECIPE] [--option VALUE ...]"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="test the best checkpoint after fit"
        )
        parser.add_lightning_class_args(WritePredictions, "predictions")
        parser.link_arguments("model.backbone", "data.init_args.backbone")
        parser.link_arguments(
            "data", "model.labels", compute_fn=self.labels, apply_on="instantiate"
        )

    def labels(self, data: TextDataModule) -> list[str] | None:
        """The label names, by id: a checkpoint's own, since its head was trained on them.

        Raises:
            ValueError: the data is labelled with others, or in another order.
        """
        saved = self.config[self.subcommand].model.get("labels")
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


def script() -> None:
    """The console script: what it returned would become the exit status."""
    if sys.argv[1:2] == ["profiles"]:
        from lightning_pelt import profiles_cli

        profiles_cli.main(sys.argv[2:])
    elif sys.argv[1:2] == ["plan"]:
        from lightning_pelt import plan_cli

        plan_cli.main(sys.argv[2:])
    elif sys.argv[1:2] == ["search"]:
        try:
            from lightning_pelt.search import command
        except ModuleNotFoundError as error:
            print(f"lightning-pelt search: {error}", file=sys.stderr)
            raise SystemExit(2) from error
        command.main(sys.argv[2:])
    else:
        main()


def main(args: ArgsType = None, kind: type[PELTCLI] = PELTCLI, run: bool = True) -> PELTCLI:
    """Run the command line.

    Args:
        args: in the place of ``sys.argv``.
        kind: a child with commands or options of its own.
        run: a command; else data, model and trainer are built and no more.
    """
    usage = {"usage": kind.usage}
    options: dict[str, Any] = {
        "prog": kind.prog,
        "version": lightning_pelt.__version__,
        "description": "Gated parameter-efficient tuning of Hugging Face transformers. "
        "`lightning-pelt profiles --help`: many users on one model. "
        "`lightning-pelt plan --help`: what a recipe's plan comes to, before any training. "
        "`lightning-pelt search --help`: find a plan.",
        **(usage if kind is not PELTCLI else {}),
        **(dict.fromkeys(kind.subcommands(), usage) if run else {}),
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
