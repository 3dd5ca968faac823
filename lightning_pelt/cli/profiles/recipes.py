"""Commands that take a recipe: train all profiles, add one, and score stored ones."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from tabulate import tabulate
from tqdm import tqdm

from lightning_pelt.cli import base
from lightning_pelt.cli.profiles.new_profile import new_profile_module
from lightning_pelt.data import RowsDataModule
from lightning_pelt.data.profile_data import PROFILE, Profiled
from lightning_pelt.methods.xpeft.masks import masks_of
from lightning_pelt.profiles.model_profiles import read_profile
from lightning_pelt.reports.distribution import distribution
from lightning_pelt.training.module import PELTModule
from lightning_pelt.utils.files import write_aside

MANY = 30  # profiles of which evaluate prints the distribution
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


class Train(StoreCommand):
    """``fit``; then writes every profile with training rows to the store, under its name."""

    prog = "lightning-pelt profiles train"
    usage = f"{prog} --config RECIPE --store STORE [--OPTION VALUE ...]"
    summary = "Fit a recipe whose data has profiles, and store them."

    def before_fit(self) -> None:
        _profile_data(self.datamodule)
        if self.trainer.checkpoint_callback is None:
            raise ValueError(
                "the shared parameters of the profiles would not be saved: leave "
                "trainer.enable_checkpointing on"
            )
        self.trainer.callbacks.append(CheckBank(self.config.fit.store))  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        super().after_fit()
        if not self.trainer.is_global_zero:
            return
        checkpoint = _best(self.trainer)
        model, data = self.stores.load_model(checkpoint), _profile_data(self.datamodule)
        trained = sorted(set(data.rows("train")[PROFILE][:]))
        with self.stores.ProfileStore(self.config.fit.store) as store:
            bar = tqdm(trained, unit=" profiles")
            store.put_many((data.profiles[number], read_profile(model, number)) for number in bar)
            print(f"checkpoint: {checkpoint}\nstore: {store.name}")
        sizes = read_profile(model, trained[0]).bytes_by_part()
        parts = self.stores.PARTS
        print("profiles" + "".join(f" {part:>8}" for part in parts) + "  (bytes of each profile)")
        print(f"{len(trained):>8}" + "".join(f" {sizes[part]:>8}" for part in parts))


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

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        self.trained = self.stores.load_model(self.config.fit.checkpoint)

    def labels(self, data: RowsDataModule) -> list[str] | None:
        return _agreed_labels(self.trained, data)

    def before_fit(self) -> None:
        _profile_data(self.datamodule).only = [self.config.fit.profile]
        self.model = new_profile_module(self.trained, self.model)
        self.trainer.callbacks.append(CheckBank(self.config.fit.store))  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        super().after_fit()
        if not self.trainer.is_global_zero:
            return
        saved = self.trainer.checkpoint_callback is not None
        model = self.stores.load_model(_best(self.trainer)) if saved else self.model
        id = self.config.fit.profile
        with self.stores.ProfileStore(self.config.fit.store) as store:
            version = store.put(id, read_profile(model))
            print(f"version {version} of the profile {id!r} is in {store.name}")


class Evaluate(StoreCommand):
    """Scores the stored profiles on the rows of a split."""

    prog = "lightning-pelt profiles evaluate"
    usage = f"{prog} --config RECIPE --checkpoint CHECKPOINT --store STORE [--OPTION VALUE ...]"
    summary = "Score every stored profile on the rows of a recipe."

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--checkpoint", type=str, required=True, help=CHECKPOINT)
        parser.add_argument("--split", type=str, default="test", help="train, dev or test.")
        parser.add_argument(
            "--csv", type=str, default=None, help="File of the score of every profile."
        )

    @classmethod
    def run(cls, args: Sequence[str]) -> None:
        command = base.main([*args, "--trainer.logger=false"], cls, run=False)
        assert isinstance(command, cls)
        command.report()

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        self.trained = self.stores.load_model(self.config.checkpoint)

    def labels(self, data: RowsDataModule) -> list[str] | None:
        return _agreed_labels(self.trained, data)

    def report(self) -> None:
        """Print the accuracy of each profile, or its distribution over many, and that of all rows.

        Raises:
            UnknownProfile: a profile of the rows is not in the store.
            ValueError: there is no such split, or its rows are pairs or have no labels.
        """
        data, labels = _profile_data(self.datamodule), self.datamodule.labels
        if data.pair or labels is None:
            raise ValueError(
                "evaluate scores the labels of single texts, and the data has "
                f"{'pairs of texts' if data.pair else 'no labels'}"
            )
        rows = data.rows(self.config.split)
        ids = [data.profiles[number] for number in rows[PROFILE][:]]
        right: Counter[str] = Counter()
        with self.stores.open_store(self.config.store) as store:
            model = self.trained.to(self.trainer.strategy.root_device)
            server = self.stores.ProfileServer(model, store, max_length=data.max_length)
            found = self.stores.answers(server, rows["text"][:], ids)
            for id, label, answer in zip(ids, rows["label"][:], found, strict=True):
                right[id] += answer["label"] == labels[label]
        counts = dict(sorted(Counter(ids).items()))
        if self.config.csv is not None:
            lines = [["profile", "rows", "accuracy"]]
            lines += [[id, str(n), f"{right[id] / n:.6f}"] for id, n in counts.items()]
            write_aside(Path(self.config.csv), lambda aside: _write_csv(aside, lines))
        if len(counts) > MANY:
            print(f"Accuracy of {len(counts)} profiles\n")
            print(distribution({id: right[id] / n for id, n in counts.items()}) + "\n")
            counts = {}
        table = [[id, n, f"{right[id] / n:.4f}"] for id, n in counts.items()]
        table.append(["all", len(ids), f"{right.total() / len(ids):.4f}"])
        align = ("left", "right", "right")
        header = ["profile", "rows", "accuracy"]
        print(tabulate(table, header, disable_numparse=True, colalign=align))


def _write_csv(path: Path, lines: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)


COMMANDS: dict[str, type[StoreCommand]] = {"train": Train, "add": Add, "evaluate": Evaluate}


def _agreed_labels(trained: PELTModule, data: RowsDataModule) -> list[str] | None:
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


def _profile_data(data: Any) -> Profiled:
    if not isinstance(data, Profiled):
        raise ValueError(
            f"{type(data).__name__} has no profiles: use data that has, such as ProfileDataModule"
        )
    return data


def _best(trainer: Trainer) -> str:
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
