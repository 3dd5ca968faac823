"""Trains the network that ``profiles add --instant`` predicts masks with."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch.cli import LightningArgumentParser

from lightning_pelt.cli import base
from lightning_pelt.cli.profiles.store_command import CHECKPOINT, agreed_labels, profile_data
from lightning_pelt.data import RowsDataModule
from lightning_pelt.profiles.mask_predictor_file import checked_path, save_predictor
from lightning_pelt.profiles.mask_predictor_training import Episodes, learn


class LearnInstant(base.RecipeCommand):
    """Trains a mask predictor on the training rows of all profiles of a checkpoint."""

    prog = "lightning-pelt profiles learn-instant"
    usage = f"{prog} --config RECIPE --checkpoint CHECKPOINT --out FILE [--OPTION VALUE ...]"
    summary = "Train a network that predicts the masks of new profiles from their texts."

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--checkpoint", type=str, required=True, help=CHECKPOINT)
        parser.add_argument(
            "--out", type=str, required=True, help="File of the network, *.safetensors."
        )
        parser.add_class_arguments(Episodes, "episodes")

    @classmethod
    def run(cls, args: Sequence[str]) -> None:
        command = base.main([*args, "--trainer.logger=false"], cls, run=False)
        assert isinstance(command, cls)
        command.learn()

    def before_instantiate_classes(self) -> None:
        from lightning_pelt.profiles.serving.loading import load_model  # needs the extra `profiles`

        checked_path(self.config.out)
        self.trained = load_model(self.config.checkpoint)

    def labels(self, data: RowsDataModule) -> list[str] | None:
        return agreed_labels(self.trained, data)

    def learn(self) -> None:
        """Train the network and write its file."""
        data = profile_data(self.datamodule)
        module = self.trained.to(self.trainer.strategy.root_device)
        predictor = learn(
            module,
            data.examples("train"),
            data.collate(),
            Episodes(**self.config.episodes.as_dict()),
            precision=self.trainer.precision_plugin.forward_context,
            progress=True,
        )
        assert module.attachment is not None
        path = save_predictor(predictor, self.config.out, module.attachment)
        print(f"network: {path}")
