"""Base of the data modules: tokenize once, pad per batch, batch rows of similar length."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property, partial
from os import PathLike, fspath
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PreTrainedTokenizerBase

from lightning_pelt.anatomy.positions import backbone_position_limit
from lightning_pelt.data._cache_key import cache_key, vocabulary_of
from lightning_pelt.data._row_choice import chosen, hold_out
from lightning_pelt.data.bucket_sampler import BucketSampler, ResumableLoader
from lightning_pelt.data.collator import Collate
from lightning_pelt.utils.backbone import load_tokenizer

ROW_NUMBERS = "row_numbers"  # attribute of rows to predict: their numbers in their source
STAGES = {
    "fit": ("train", "dev"),
    "validate": ("dev",),
    "test": ("test",),
    "predict": ("predict",),
}


class TextDataModule(LightningDataModule, ABC):
    """Base of the data modules. A child reads the rows and converts a row to tokens.

    A batch is a dict of tensors: ``input_ids``, ``attention_mask`` and, if the tokenizer returns
    them, ``token_type_ids``, all (B, T) int64; and ``labels``, except in prediction. The splits are
    named train, dev, test and predict. Without a predict split, the test rows are predicted.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        batch_size: training rows per process and step.
        eval_batch_size: rows per process and step otherwise; by default ``batch_size``.
        max_length: maximum number of tokens per row; longer rows are cut.
        pad: to the longest row of each batch, or always to ``max_length``.
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

        class Sentences(TextDataModule):
            def read(self):
                return {"train": Dataset.from_dict({"text": ["a b", "c"], "label": [0, 1]})}

            def encode(self, rows, split):
                return {**self.tokenizer(rows["text"]), "labels": rows["label"]}
    """

    def __init__(
        self,
        backbone: str,
        *,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        max_length: int = 128,
        pad: Literal["longest", "max_length"] = "longest",
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
        self.max_length = max_length
        self.pad = pad
        self.bucketed = bucketed
        self.num_workers = num_workers
        self.seed = seed
        self.limit_train = limit_train
        self.limit_eval = limit_eval
        self.holdout = holdout
        self._encoded: dict[str, Dataset] = {}
        self.row_numbers: dict[str, np.ndarray] = {}  # of splits without all their rows

    @abstractmethod
    def read(self) -> dict[str, Dataset]:
        """The raw rows of each split."""

    @abstractmethod
    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens of the rows, column by column, with ``labels`` unless ``split`` is predict."""

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes by index; None if the target is not a class."""
        return None

    @property
    def pair(self) -> bool:
        """Whether a row is a pair of texts."""
        return False

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer.

        Raises:
            ValueError: ``max_length`` is more than the tokenizer or the backbone takes.
        """
        tokenizer = load_tokenizer(self.backbone)
        self._check_length("max_length", self.max_length, tokenizer.model_max_length)
        self._check_length("max_length", self.max_length, self.positions)
        return tokenizer

    @cached_property
    def positions(self) -> int | None:
        """Number of tokens for which the backbone has positions; None without a limit."""
        return backbone_position_limit(self.backbone)

    def _check_length(self, argument: str, length: int, most: int | None) -> None:
        if most is not None and length > most:
            raise ValueError(
                f"{argument} is {length}, but {self.backbone!r} takes at most {most} tokens: lower "
                f"{argument}"
            )

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

    def tokens(self, split: str) -> Dataset:
        """The tokenized rows of ``split``, cached on disk beside the raw rows."""
        if split not in self._encoded:
            raw = self.rows(split)
            self._encoded[split] = raw.map(
                partial(self._encode, split=split),
                batched=True,
                remove_columns=raw.column_names,
                desc=f"tokenizing {split}",
                new_fingerprint=self._cache_key(raw, split),
            )
        return self._encoded[split]

    def prepare_data(self) -> None:
        """Fill the cache in one process before the others read it."""
        self.setup(self.trainer.state.fn if self.trainer and self.trainer.state.fn else "fit")

    def setup(self, stage: str) -> None:
        """Read and tokenize the splits of ``stage``."""
        for split in STAGES[stage]:
            if split != "dev" or split in self.splits:
                self.tokens(split)

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
        rows = self.tokens(split)
        sampler = BucketSampler(
            rows["length"][:] if self.bucketed else np.ones(len(rows)),
            batch_size=batch_size,
            shuffle=split == "train",
            seed=self.seed,
            **self._sampler_options(),
        )
        options = {"sampler": sampler, "batch_size": None, **self._loader_options()}
        if split != "train":
            return DataLoader(rows.remove_columns("length"), **options)
        loader = ResumableLoader(rows.remove_columns("length"), **options)
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
        rows = self.tokens(split).remove_columns("length")
        return DataLoader(
            rows, sampler=SequentialSampler(rows), batch_size=batch_size, **self._loader_options()
        )

    def _sampler_options(self) -> dict[str, int]:
        """Number of data-parallel processes and the rank, if the strategy divides the data."""
        return (self.trainer.distributed_sampler_kwargs or {}) if self.trainer is not None else {}

    def _loader_options(self) -> dict[str, Any]:
        device = self.trainer.strategy.root_device.type if self.trainer is not None else "cpu"
        return {
            "collate_fn": Collate(self.tokenizer, self.fixed_lengths()),
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": device == "cuda",
        }

    def fixed_lengths(self) -> dict[str, int]:
        """Fixed numbers of tokens by column; empty to pad to the longest row."""
        if self.pad == "longest":
            return {}
        return dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), self.max_length)

    def _encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        columns = self.encode(rows, split)
        return {**columns, "length": [len(ids) for ids in columns["input_ids"]]}

    def _cache_key(self, raw: Dataset, split: str) -> str:
        kind = type(self).__name__, split == "predict"
        return cache_key(raw, kind, self.hparams, self._vocabulary)

    @cached_property
    def _vocabulary(self) -> Any:
        return vocabulary_of(self.tokenizer)
