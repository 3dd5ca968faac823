"""``PELTCLI``: a recipe, and the command line over it, as model, data and trainer."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.rank_zero import rank_zero_info

# Imported for their short names: `class_path: LoRA`, `--trainer.callbacks+=GateMonitor`.
import lightning_pelt
from lightning_pelt import methods, tasks  # noqa: F401
from lightning_pelt.callbacks import WritePredictions
from lightning_pelt.cli.agreement import agree
from lightning_pelt.cli.checkpoint_files import (
    KEYWORDS,
    WEIGHTS_ONLY,
    can_resume,
    find_checkpoint,
    read_checkpoint,
)
from lightning_pelt.cli.data_preview import HELP, print_data
from lightning_pelt.cli.overview import DESCRIPTION, PROG, TRAINER
from lightning_pelt.cli.parser import SuggestingParser
from lightning_pelt.cli.plugins import load_plugins
from lightning_pelt.data import RowsDataModule
from lightning_pelt.exchange import adapterhub  # noqa: F401
from lightning_pelt.plans import design_space  # noqa: F401
from lightning_pelt.training.module import PELTModule

USES = ("validate", "test", "predict")  # commands that use a trained model
UNTRAINED = "Without a checkpoint, use the backbone with new weights, such as a random head."


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

    trains: ClassVar[bool] = True  # whether the command `fit` trains
    prog: ClassVar[str] = PROG
    usage: ClassVar[str] = "%(prog)s [--config RECIPE] [--OPTION VALUE ...]"

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        load_plugins()
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        for name, parser in self._subcommand_parsers.items() if add_subcommands else ():
            if name in USES:
                parser.add_argument("--untrained", type=bool, default=False, help=UNTRAINED)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="Test the best checkpoint after fit."
        )
        parser.add_argument("--print_data", type=int | None, default=None, help=HELP)
        parser.add_lightning_class_args(WritePredictions, "predictions")
        parser.link_arguments("model.backbone", "data.init_args.backbone")
        parser.link_arguments(
            "data", "model.labels", compute_fn=self.labels, apply_on="instantiate"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        with warnings.catch_warnings():
            # Lightning warns of arguments besides sys.argv, which names the command itself.
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().parse_arguments(parser, args)

        self._args = args

    def _parse_ckpt_path(self) -> None:
        """Take the hyperparameters that are not given from the checkpoint.

        LightningCLI takes all of them, so that what is given has no effect.
        """
        command = self.config.get("subcommand")
        options = self.config.get(str(command)) or Namespace()
        if options.get("ckpt_path") is None:
            if options.get("untrained") is False:
                raise ValueError(
                    f"{command} needs a trained model: give --ckpt_path FILE, last or best, or "
                    "--untrained true to use the backbone with new weights"
                )
            return
        if options.get("untrained"):
            raise ValueError(f"--untrained true excludes --ckpt_path {options.ckpt_path}")
        resume = command == "fit" and self.trains
        if options.ckpt_path in KEYWORDS:
            arguments = instantiate(Trainer, "trainer", options.trainer)
            options.ckpt_path = find_checkpoint(options.ckpt_path, arguments, resume=resume)
        checkpoint = read_checkpoint(options.ckpt_path)
        if resume and not can_resume(checkpoint):
            raise ValueError(f"{options.ckpt_path} {WEIGHTS_ONLY}")
        saved = checkpoint["hyper_parameters"]
        here = build_model(options.model, saved.get("labels")).hparams
        taken = agree(saved, self._given(command), here, path=options.ckpt_path)
        self.config = self.parser.parse_object({command: {"model": taken}}, self.config)

    def _given(self, command: str) -> dict[str, Any]:
        """The options of the model in the recipe and on the command line, without defaults."""
        structured = isinstance(self._args, dict | Namespace)
        parse: Any = self.parser.parse_object if structured else self.parser.parse_args
        given = parse(self._args, defaults=False)[command].get("model")
        return given.as_dict() if given else {}

    def instantiate_classes(self) -> None:
        """Build data, model and trainer, or only the data, print its rows, and exit."""
        if (count := self._get(self.config, "print_data")) is not None:
            print_data(build_data(self._get(self.config, "data")), count, str(self.subcommand))
            self.parser.exit()
        super().instantiate_classes()

    def labels(self, data: RowsDataModule) -> list[str] | None:
        """The label names by id: those of the checkpoint, if there is one, else those of the data.

        Raises:
            ValueError: the data has other labels than the checkpoint, or another order.
        """
        saved = self._get(self.config, "model").get("labels")
        if saved is None:
            return data.labels
        if (found := self._labels_of(data, saved)) != saved:
            raise ValueError(
                f"the checkpoint was trained on the labels {saved}, and the data has {found}"
                ": use the data it was trained on, or give that order with --data.labels"
            )
        return saved

    def _labels_of(self, data: RowsDataModule, saved: list[str]) -> list[str] | None:
        try:
            return data.labels
        except (ValueError, OSError):
            if self.subcommand != "predict":
                raise
            return saved  # rows without labels, and no others to collect them from

    def after_fit(self) -> None:
        if not self.config["fit"]["test_after_fit"]:
            return
        data = self.datamodule
        if isinstance(data, RowsDataModule) and "test" not in data.splits:
            rank_zero_info(f"not tested: {type(data).__name__} has no test rows; give --data.test")
        else:
            self.trainer.test(self.model, datamodule=data, ckpt_path=self.tested_checkpoint())

    def tested_checkpoint(self) -> str | None:
        """What is tested after a fit: the best checkpoint; without one, the last step."""
        found = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
        return "best" if found else None


def build_model(options: Namespace, labels: list[str] | None) -> PELTModule:
    """The module of a recipe, without its data.

    Args:
        options: the parsed options of the model.
        labels: instead of those that the data has.
    """
    options = options.clone()
    options.labels = labels
    return instantiate(PELTModule, "model", options)


def build_data(options: Namespace) -> RowsDataModule:
    """The data module of a recipe, without its model."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(RowsDataModule, "data", subclass_mode=True)
    data: RowsDataModule = parser.instantiate_classes(Namespace(data=options)).data
    return data


def instantiate(cls: type, name: str, options: Namespace) -> Any:
    """Build what the options of one group describe; of the Trainer, only its arguments."""
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(cls, name)
    return parser.instantiate_classes(Namespace({name: options}))[name]


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
            **({"description": TRAINER[name]} if name in TRAINER else {}),
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
        RowsDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=42,
        save_config_kwargs={"overwrite": True},
        parser_class=SuggestingParser,
        parser_kwargs=options,
        args=args,
        run=run,
    )
