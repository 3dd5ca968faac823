"""What commands with a recipe and a store of profiles share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lightning_pelt.cli import base
from lightning_pelt.data import RowsDataModule
from lightning_pelt.data.profile_data import Profiled
from lightning_pelt.methods.xpeft.masks import masks_of
from lightning_pelt.training.module import PELTModule

STORE = "Path of a SQLite file, or URL of a PostgreSQL database."
CHECKPOINT = "Checkpoint of the trained model."


class StoreCommand(base.RecipeCommand):
    """A command that takes a recipe and a store of profiles."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--store", type=str, required=True, help=STORE)

    @classmethod
    def run(cls, args: Sequence[str]) -> None:
        base.main(["fit", *args], cls)

    def before_instantiate_classes(self) -> None:
        # `--help` works without the extra; a fit without it would end without a store.
        from lightning_pelt.cli.profiles import stores  # needs the extra `profiles`

        self.stores = stores


class CheckBank(Callback):
    """Refuses a store with profiles of another bank, before anything is trained."""

    def __init__(self, store: str) -> None:
        self.store = store

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from lightning_pelt.profiles.store import ProfileStore  # needs the extra `profiles`

        digest = masks_of(pl_module).bank.digest
        with ProfileStore(self.store) as store:
            if store.bank not in (None, digest):
                raise ValueError(
                    f"{store.name} has profiles of the bank {store.bank}, and the plan has the "
                    f"bank {digest}: name another store, or use that bank"
                )


def agreed_labels(trained: PELTModule, data: RowsDataModule) -> list[str] | None:
    """The labels of the trained head; the data takes them unless it was given labels.

    Raises:
        ValueError: the data has other labels, or another order.
    """
    if getattr(data, "given_labels", ()) is None:
        data.given_labels = trained.labels  # type: ignore[attr-defined]
    if data.labels != trained.labels:
        raise ValueError(
            f"the checkpoint was trained on the labels {trained.labels}, and the data has "
            f"{data.labels}: use the labels of the checkpoint, whose head the profiles share"
        )
    return trained.labels


def profile_data(data: Any) -> Profiled:
    if not isinstance(data, Profiled):
        raise ValueError(
            f"{type(data).__name__} has no profiles: use data that has, such as ProfileDataModule"
        )
    return data


def best_checkpoint(trainer: Trainer) -> str:
    """Path of the best checkpoint, or of the last if no metric is monitored.

    Raises:
        ValueError: the fit wrote no checkpoint.
    """
    callback: Any = trainer.checkpoint_callback
    path = callback.best_model_path or getattr(callback, "last_model_path", "")
    if not path:
        raise ValueError(
            "the fit wrote no checkpoint, from which the profiles are read: see its "
            "ModelCheckpoint in the recipe"
        )
    return path
