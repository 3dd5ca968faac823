"""Adds one profile to a trained model: trained, or predicted from the texts of its user."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor

from lightning_pelt.cli.profiles.new_profile import new_profile_module
from lightning_pelt.cli.profiles.store_command import (
    CHECKPOINT,
    CheckBank,
    StoreCommand,
    agreed_labels,
    best_checkpoint,
    profile_data,
)
from lightning_pelt.data import RowsDataModule
from lightning_pelt.profiles.mask_predictor_file import load_predictor
from lightning_pelt.profiles.mask_predictor_training import predict_logits
from lightning_pelt.profiles.model_profiles import read_profile

INSTANT = (
    "File of `profiles learn-instant`, which predicts the masks from the training rows. Without "
    "--refine_steps nothing is trained. No checkpoint is read: what is stored is the last step."
)
REFINE = "With --instant: number of steps that train the predicted masks further."


class Add(StoreCommand):
    """Trains one profile on its rows, from the mean of the profiles of a trained model."""

    prog = "lightning-pelt profiles add"
    usage = (
        f"{prog} --config RECIPE --checkpoint CHECKPOINT --store STORE --profile PROFILE "
        "[--OPTION VALUE ...]"
    )
    summary = "Train one more profile on a trained model."

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--checkpoint", type=str, required=True, help=CHECKPOINT)
        parser.add_argument("--profile", type=str, required=True, help="Name of the new profile.")
        parser.add_argument("--instant", type=str | None, default=None, help=INSTANT)
        parser.add_argument("--refine_steps", type=int | None, default=None, help=REFINE)

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        self.trained = self.stores.load_model(self.config.fit.checkpoint)
        steps, instant = self.config.fit.refine_steps, self.config.fit.instant
        if steps is not None and (instant is None or steps < 0):
            raise ValueError(
                f"refine_steps is {steps}"
                + (
                    ", expected 0 or more"
                    if steps < 0
                    else " without --instant: give the file of "
                    "`profiles learn-instant`, or set the length of a full fit with "
                    "--trainer.max_epochs"
                )
            )
        self.predictor = None
        if instant is not None:
            assert self.trained.attachment is not None
            self.predictor = load_predictor(instant, self.trained.attachment)

    def labels(self, data: RowsDataModule) -> list[str] | None:
        return agreed_labels(self.trained, data)

    def before_fit(self) -> None:
        profile_data(self.datamodule).only = [self.config.fit.profile]
        self.model = new_profile_module(self.trained, self.model, self._predicted())
        self.trainer.callbacks.append(CheckBank(self.config.fit.store))  # type: ignore[attr-defined]
        if self.predictor is not None:
            self.trainer.fit_loop.epoch_loop.max_steps = self.config.fit.refine_steps or 0
            self.trainer.fit_loop.max_epochs = -1

    def _predicted(self) -> Tensor | None:
        """The logits of the masks from the training rows; None without a predictor."""
        if self.predictor is None:
            return None
        data = profile_data(self.datamodule)
        return predict_logits(
            self.predictor,
            self.trained.to(self.trainer.strategy.root_device),
            data.examples("train"),
            data.collate(),
            precision=self.trainer.precision_plugin.forward_context,
        )

    def fit(self, **given: Any) -> None:
        """Called by LightningCLI in the place of the trainer's ``fit``."""
        if self.predictor is None or self.config.fit.refine_steps:
            self.trainer.fit(**given)

    def tested_checkpoint(self) -> str | None:
        """With a predictor, what is stored is the last step, so that this is what is tested."""
        return super().tested_checkpoint() if self.predictor is None else None

    def after_fit(self) -> None:
        super().after_fit()
        if not self.trainer.is_global_zero:
            return
        saved = self.trainer.checkpoint_callback is not None and self.predictor is None
        model = self.stores.load_model(best_checkpoint(self.trainer)) if saved else self.model
        id = self.config.fit.profile
        with self.stores.ProfileStore(self.config.fit.store) as store:
            version = store.put(id, read_profile(model))
            print(f"version {version} of the profile {id!r} is in {store.name}")
