"""``lightning-pelt``: fit, validate, test and predict from YAML recipes."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

# Imported for their short names: `class_path: LoRA`, `--trainer.callbacks+=GateMonitor`.
import lightning_pelt
from lightning_pelt import callbacks, data, methods, tasks  # noqa: F401
from lightning_pelt.data import TextDataModule
from lightning_pelt.module import PELTModule


class PELTCLI(LightningCLI):
    """Links what data and model share, and tests after fitting where asked to."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="test the best checkpoint after fit"
        )
        parser.link_arguments("model.backbone", "data.init_args.backbone")
        parser.link_arguments("data.labels", "model.labels", apply_on="instantiate")

    def after_fit(self) -> None:
        if self.config["fit"]["test_after_fit"]:
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            self.trainer.test(
                self.model, datamodule=self.datamodule, ckpt_path="best" if best else None
            )


def main(args: ArgsType = None) -> PELTCLI:
    """Run the command line; ``args`` replaces ``sys.argv`` in tests."""
    version = f"%(prog)s {lightning_pelt.__version__}"
    options: dict[str, Any] = {"prog": "lightning-pelt", "version": version}
    return PELTCLI(
        PELTModule,
        TextDataModule,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=42,
        save_config_kwargs={"overwrite": True},
        parser_kwargs=options,
        args=args,
    )
