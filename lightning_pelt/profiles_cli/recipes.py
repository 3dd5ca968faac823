"""Commands with a recipe: to train all its profiles, to add one more, and to score what is kept."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from tqdm import tqdm

from lightning_pelt import cli
from lightning_pelt.data import TextDataModule
from lightning_pelt.data.profiles import PROFILE, Profiled
from lightning_pelt.module import PELTModule
from lightning_pelt.profiles.keeping import read_profile
from lightning_pelt.profiles.masks import masks_of
from lightning_pelt.profiles.store import ProfileStore
from lightning_pelt.profiles_cli.newcomer import newcomer
from lightning_pelt.profiles_cli.stores import PARTS, answers
from lightning_pelt.serving import ProfileServer
from lightning_pelt.serving.opening import load_model, open_store

STORE = "path of a SQLite file, or URL of a PostgreSQL database"


def run(command: str, args: list[str]) -> None:
    """``train``, ``add`` or ``evaluate`` with the options of ``fit`` and its own."""
    if command == "evaluate":
        score = cli.main([*args, "--trainer.logger=false"], Evaluate, run=False)
        assert isinstance(score, Evaluate)
        score.report()
    else:
        cli.main(["fit", *args], Train if command == "train" else Add)


class Train(cli.PELTCLI):
    """``fit``, and then each profile that had rows goes into the store under its name."""

    prog = "lightning-pelt profiles train"
    usage = f"{prog} --config RECIPE --store STORE [--option VALUE ...]"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--store", type=str, required=True, help=STORE)

    def before_fit(self) -> None:
        _profiled(self.datamodule)
        if self.trainer.checkpoint_callback is None:
            raise ValueError(
                "nothing would keep what the profiles share: leave trainer.enable_checkpointing on"
            )
        self.trainer.callbacks.append(SameBank(self.config.fit.store))  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        super().after_fit()
        if not self.trainer.is_global_zero:
            return
        checkpoint = _best(self.trainer)
        model, data = load_model(checkpoint), _profiled(self.datamodule)
        trained = sorted(set(data.rows("train")[PROFILE][:]))
        with ProfileStore(self.config.fit.store) as store:
            bar = tqdm(trained, unit=" profiles")
            store.put_many((data.profiles[number], read_profile(model, number)) for number in bar)
            print(f"checkpoint: {checkpoint}\nstore: {store.name}")
        parts = read_profile(model, trained[0]).bytes_by_part()
        print("profiles" + "".join(f" {part:>8}" for part in PARTS) + "  (bytes of each profile)")
        print(f"{len(trained):>8}" + "".join(f" {parts[part]:>8}" for part in PARTS))


class SameBank(Callback):
    """Refuses, before anything is trained, a store that could not take the profiles."""

    def __init__(self, store: str) -> None:
        self.store = store

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        digest = masks_of(pl_module).bank.digest
        with ProfileStore(self.store) as store:
            if store.bank not in (None, digest):
                raise ValueError(
                    f"{store.name} keeps profiles of the bank {store.bank}, and the plan has the "
                    f"bank {digest}: name another store, or take that bank"
                )


class Add(cli.PELTCLI):
    """One profile, trained on its own rows alone, from the mean of those that are there."""

    prog = "lightning-pelt profiles add"
    usage = (
        f"{prog} --config RECIPE --checkpoint CHECKPOINT --store STORE --profile PROFILE "
        "[--option VALUE ...]"
    )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--checkpoint", type=str, required=True, help="of the trained model")
        parser.add_argument("--store", type=str, required=True, help=STORE)
        parser.add_argument("--profile", type=str, required=True, help="name of the new one")

    def before_instantiate_classes(self) -> None:
        self.trained = load_model(self.config.fit.checkpoint)

    def labels(self, data: TextDataModule) -> list[str] | None:
        return _agreed_labels(self.trained, data)

    def before_fit(self) -> None:
        _profiled(self.datamodule).only = [self.config.fit.profile]
        self.model = newcomer(self.trained, self.model)
        self.trainer.callbacks.append(SameBank(self.config.fit.store))  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        super().after_fit()
        if not self.trainer.is_global_zero:
            return
        kept = self.trainer.checkpoint_callback is not None
        model = load_model(_best(self.trainer)) if kept else self.model
        id = self.config.fit.profile
        with ProfileStore(self.config.fit.store) as store:
            version = store.put(id, read_profile(model))
            print(f"version {version} of the profile {id!r} is in {store.name}")


class Evaluate(cli.PELTCLI):
    """What the bits of a store are worth on the rows of a split."""

    prog = "lightning-pelt profiles evaluate"
    usage = f"{prog} --config RECIPE --checkpoint CHECKPOINT --store STORE [--option VALUE ...]"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--checkpoint", type=str, required=True, help="of the trained model")
        parser.add_argument("--store", type=str, required=True, help=STORE)
        parser.add_argument("--split", type=str, default="test", help="train, dev or test")

    def before_instantiate_classes(self) -> None:
        self.trained = load_model(self.config.checkpoint)

    def labels(self, data: TextDataModule) -> list[str] | None:
        return _agreed_labels(self.trained, data)

    def report(self) -> None:
        """Accuracy of each profile and of all rows, from the stored bits.

        Raises:
            UnknownProfile: a profile of the rows is not in the store.
            ValueError: there is no such split, or its rows are pairs or have no labels.
        """
        data, labels = _profiled(self.datamodule), self.datamodule.labels
        if data.pair or labels is None:
            raise ValueError("the accuracy of a label for a single text can be scored, no other")
        rows = data.rows(self.config.split)
        ids = [data.profiles[number] for number in rows[PROFILE][:]]
        right: Counter[str] = Counter()
        with open_store(self.config.store) as store:
            model = self.trained.to(self.trainer.strategy.root_device)
            server = ProfileServer(model, store, max_length=data.max_length)
            found = answers(server, rows["text"][:], ids)
            for id, label, answer in zip(ids, rows["label"][:], found, strict=True):
                right[id] += answer["label"] == labels[label]
        print(f"{'profile':<32} {'rows':>8} {'accuracy':>9}")
        for id, count in sorted(Counter(ids).items()):
            print(f"{id:<32} {count:>8} {right[id] / count:>9.4f}")
        print(f"{'all':<32} {len(ids):>8} {right.total() / len(ids):>9.4f}")


def _agreed_labels(trained: PELTModule, data: TextDataModule) -> list[str] | None:
    """The labels of the trained head, which the data takes unless it was given some.

    Raises:
        ValueError: the data has others, or another order.
    """
    if getattr(data, "given_labels", ()) is None:
        data.given_labels = trained.labels  # type: ignore[attr-defined]
    if data.labels != trained.labels:
        raise ValueError(
            f"the checkpoint was trained on the labels {trained.labels}, and the data has "
            f"{data.labels}: the profiles share a head, and it has no others"
        )
    return trained.labels


def _profiled(data: Any) -> Profiled:
    if not isinstance(data, Profiled):
        raise ValueError(
            f"{type(data).__name__} has no profiles: take data that has, such as ProfileDataModule"
        )
    return data


def _best(trainer: Trainer) -> str:
    """Path of the best checkpoint, or of the last where none was compared.

    Raises:
        ValueError: none was written.
    """
    callback: Any = trainer.checkpoint_callback
    path = callback.best_model_path or getattr(callback, "last_model_path", "")
    if not path:
        raise ValueError("the fit wrote no checkpoint, which the profiles need: see its callback")
    return path
