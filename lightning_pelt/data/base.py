"""Base of the data modules: the rows of the splits, and the loaders that batch them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from os import PathLike, fspath
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, SequentialSampler

from lightning_pelt.data._row_choice import chosen, hold_out
from lightning_pelt.data.bucket_sampler import BucketSampler, ResumableLoader

ROW_NUMBERS = "row_numbers"  # attribute of rows to predict: their numbers in their source
STAGES = {
    "fit": ("train", "dev"),
    "validate": ("dev",),
    "test": ("test",),
    "predict": ("predict",),
}


class RowsDataModule(LightningDataModule, ABC):
    """Base of the data modules. A child reads the rows, and says how they become batches.

    A batch is a dict of tensors and, where a task needs them, of lists of plain data. The splits
    are named train, dev, test and predict. Without a predict split, the test rows are predicted.

    Args:
        backbone: hub id or folder whose tokenizer or processor is used.
        batch_size: training rows per process and step.
        eval_batch_size: rows per process and step otherwise; by default ``batch_size``.
        bucketed: batch rows of similar length, which saves padding.
        num_workers: number of processes that prepare batches.
        seed: of the order of the training batches.
        limit_train: train on a random choice of this many rows.
        limit_eval: use a random choice of this many rows of each other split.
        holdout: hold out this share of the training rows and use it instead of the dev split, whose
            rows are then not used at all. The choice is random but does not depend on a seed. The
            test split does not change.

    Raises:
        ValueError: ``holdout`` is not between 0 and 1. A holdout that takes all rows or none raises
            when the rows are read.

    Example::

        class Points(RowsDataModule):
            def read(self):
                return {"train": Dataset.from_dict({"x": [[0.0], [1.0]], "labels": [0, 1]})}

            def examples(self, split):
                return self.rows(split)

            def collate(self):
                return default_collate  # of torch.utils.data
    """

    sampler: ClassVar[type[BucketSampler]] = BucketSampler

    def __init__(
        self,
        backbone: str,
        *,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        bucketed: bool = True,
        num_workers: int = 0,
        seed: int = 42,
        limit_train: int | None = None,
        limit_eval: int | None = None,
        holdout: float | None = None,
    ) -> None:
        super().__init__()
        if holdout is not None and not 0 < holdout < 1:
            raise ValueError(
                f"holdout is {holdout}, expected a share of the training rows between 0 and 1, "
                "such as 0.1"
            )
        self.save_hyperparameters(logger=False)  # the model's have some of the same names
        for name, value in self.hparams.items():
            if isinstance(value, PathLike):  # checkpoints hold only plain data
                self.hparams[name] = fspath(value)
        self.backbone = backbone
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.bucketed = bucketed
        self.num_workers = num_workers
        self.seed = seed
        self.limit_train = limit_train
        self.limit_eval = limit_eval
        self.holdout = holdout
        self.row_numbers: dict[str, np.ndarray] = {}  # of splits without all their rows

    @abstractmethod
    def read(self) -> dict[str, Dataset]:
        """The raw rows of each split."""

    @abstractmethod
    def examples(self, split: str) -> Dataset:
        """What the batches of ``split`` are made of, one item per row."""

    @abstractmethod
    def collate(self) -> Callable[[Any], dict[str, Any]]:
        """Makes a batch of items, given as a list or as a slice of :meth:`examples`."""

    def lengths(self, split: str) -> np.ndarray:
        """The length of each row of ``split``, by which rows are batched; (rows,) int64."""
        return np.ones(len(self.examples(split)), dtype=np.int64)

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes by index; None if the target is not a class."""
        return None

    @cached_property
    def splits(self) -> dict[str, Dataset]:
        """The raw rows of each split, after ``limit_train``, ``holdout`` and ``limit_eval``.

        Raises:
            ValueError: ``holdout`` takes all training rows or none, or there is no train split.
        """
        self.row_numbers.clear()
        splits = self.read()
        if "train" in splits:
            indices = chosen(len(splits["train"]), self.limit_train)
            splits["train"] = self.keep("train", splits["train"], indices)
        if self.holdout is not None:
            splits["train"], splits["dev"] = hold_out(splits.get("train"), self.holdout)
        for name in splits.keys() - {"train"}:
            splits[name] = self.keep(name, splits[name], chosen(len(splits[name]), self.limit_eval))
        return splits

    def keep(self, split: str, rows: Dataset, indices: np.ndarray | None) -> Dataset:
        """Select rows of a split; None selects all. Numbers of rows to predict are remembered."""
        if indices is None:
            return rows
        if split in STAGES["test"] + STAGES["predict"]:
            numbers = self.row_numbers.get(split, np.arange(len(rows)))
            self.row_numbers[split] = numbers[indices]
        return rows.select(indices)

    def rows(self, split: str) -> Dataset:
        """The raw rows of ``split``, in the order of prediction.

        Raises:
            ValueError: the split does not exist.
        """
        name = "test" if split == "predict" and split not in self.splits else split
        if name not in self.splits:
            raise ValueError(
                f"{type(self).__name__} has no {split} split, only {', '.join(self.splits)}"
            )
        return self.splits[name]

    def prepare_data(self) -> None:
        """Fill the cache in one process before the others read it."""
        self.setup(self.trainer.state.fn if self.trainer and self.trainer.state.fn else "fit")

    def setup(self, stage: str) -> None:
        """Read and prepare the splits of ``stage``."""
        for split in self.stage_splits(stage):
            self.examples(split)

    def stage_splits(self, stage: str) -> list[str]:
        """The splits that ``stage`` uses; a fit may have no dev split."""
        return [split for split in STAGES[stage] if split != "dev" or split in self.splits]

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", self.batch_size)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._evaluation("dev") if "dev" in self.splits else []

    def test_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._evaluation("test")

    def predict_dataloader(self) -> DataLoader:
        loader = self._sequential_loader("predict", self.eval_batch_size or self.batch_size)
        name = "predict" if "predict" in self.splits else "test"
        # On the rows, since Lightning builds other loaders over them.
        setattr(loader.dataset, ROW_NUMBERS, self.row_numbers.get(name))
        return loader

    def _evaluation(self, split: str) -> DataLoader:
        return self._loader(split, self.eval_batch_size or self.batch_size)

    def _loader(self, split: str, batch_size: int) -> DataLoader:
        if getattr(self.trainer, "overfit_batches", 0):  # the same batches in every epoch
            return self._sequential_loader(split, batch_size)
        rows = self.examples(split)
        sampler = self.sampler(
            self.lengths(split) if self.bucketed else np.ones(len(rows)),
            batch_size=batch_size,
            shuffle=split == "train",
            seed=self.seed,
            **self._sampler_options(),
        )
        options = {"sampler": sampler, "batch_size": None, **self._loader_options()}
        if split != "train":
            return DataLoader(rows, **options)
        loader = ResumableLoader(rows, **options)
        if self.trainer is not None:
            loader.position = self._position
        return loader

    def _position(self) -> tuple[int, int]:
        """The epoch of the trainer, and its number of complete batches."""
        assert self.trainer is not None
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return self.trainer.current_epoch, batches.ready

    def _sequential_loader(self, split: str, batch_size: int) -> DataLoader:
        """A loader with a plain sampler, which Lightning can distribute and track by row."""
        rows = self.examples(split)
        return DataLoader(
            rows, sampler=SequentialSampler(rows), batch_size=batch_size, **self._loader_options()
        )

    def _sampler_options(self) -> dict[str, int]:
        """Number of data-parallel processes and the rank, if the strategy divides the data."""
        return (self.trainer.distributed_sampler_kwargs or {}) if self.trainer is not None else {}

    def _loader_options(self) -> dict[str, Any]:
        device = self.trainer.strategy.root_device.type if self.trainer is not None else "cpu"
        return {
            "collate_fn": self.collate(),
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": device == "cuda",
        }
