"""Commands that take a recipe: train all profiles, and score stored ones."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser
from tabulate import tabulate
from tqdm import tqdm

from lightning_pelt.cli import base
from lightning_pelt.cli.profiles.add import Add
from lightning_pelt.cli.profiles.learn_instant import LearnInstant
from lightning_pelt.cli.profiles.store_command import (
    CHECKPOINT,
    CheckBank,
    StoreCommand,
    agreed_labels,
    best_checkpoint,
    profile_data,
)
from lightning_pelt.data import RowsDataModule
from lightning_pelt.data.profile_data import PROFILE
from lightning_pelt.profiles.model_profiles import read_profile
from lightning_pelt.reports.distribution import distribution
from lightning_pelt.utils.files import write_aside

MANY = 30  # profiles of which evaluate prints the distribution


class Train(StoreCommand):
    """``fit``; then writes every profile with training rows to the store, under its name."""

    prog = "lightning-pelt profiles train"
    usage = f"{prog} --config RECIPE --store STORE [--OPTION VALUE ...]"
    summary = "Fit a recipe whose data has profiles, and store them."

    def before_fit(self) -> None:
        profile_data(self.datamodule)
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
        checkpoint = best_checkpoint(self.trainer)
        model, data = self.stores.load_model(checkpoint), profile_data(self.datamodule)
        trained = sorted(set(data.rows("train")[PROFILE][:]))
        with self.stores.ProfileStore(self.config.fit.store) as store:
            bar = tqdm(trained, unit=" profiles")
            store.put_many((data.profiles[number], read_profile(model, number)) for number in bar)
            print(f"checkpoint: {checkpoint}\nstore: {store.name}")
        sizes = read_profile(model, trained[0]).bytes_by_part()
        parts = self.stores.PARTS
        print("profiles" + "".join(f" {part:>8}" for part in parts) + "  (bytes of each profile)")
        print(f"{len(trained):>8}" + "".join(f" {sizes[part]:>8}" for part in parts))


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
        return agreed_labels(self.trained, data)

    def report(self) -> None:
        """Print the accuracy of each profile, or its distribution over many, and that of all rows.

        Raises:
            UnknownProfile: a profile of the rows is not in the store.
            ValueError: there is no such split, or its rows are pairs or have no labels.
        """
        data, labels = profile_data(self.datamodule), self.datamodule.labels
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


COMMANDS: dict[str, type[StoreCommand | LearnInstant]] = {
    "train": Train,
    "learn-instant": LearnInstant,
    "add": Add,
    "evaluate": Evaluate,
}
