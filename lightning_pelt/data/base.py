"""What every data module shares: tokenising once, padding late, batches of similar length."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from functools import cached_property, partial
from os import PathLike, fspath
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from datasets.fingerprint import Hasher
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PreTrainedTokenizerBase

from lightning_pelt.backbone import load_tokenizer
from lightning_pelt.data.buckets import BucketSampler, ResumableLoader
from lightning_pelt.data.collate import Collate
from lightning_pelt.data.reading import FORMAT

STAGES = {
    "fit": ("train", "dev"),
    "validate": ("dev",),
    "test": ("test",),
    "predict": ("predict",),
}
HOLDOUT = 1  # seed of the choice of the rows that are held out


class TextDataModule(LightningDataModule, ABC):
    """Base of the data modules. A child says what the rows are and how a row becomes tokens.

    A batch is a dict of tensors: ``input_ids``, ``attention_mask`` and, where the tokenizer makes
    them, ``token_type_ids``, all ``(batch, tokens)`` int64; and ``labels``, absent when predicting.
    The splits are called train, dev, test and predict; the last is test unless a child has one.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        batch_size: rows per process and step when training.
        eval_batch_size: rows per process and step otherwise; by default ``batch_size``.
        max_length: tokens per row; longer ones are cut.
        pad: to the longest row of each batch, or always to ``max_length``.
        bucketed: batches of rows of similar length, which saves padding.
        num_workers: processes that prepare batches.
        seed: of the order of the training batches.
        limit_train: train on a random choice of this many rows.
        limit_eval: use a random choice of this many rows of each other split.
        holdout: hold this share of the training rows out and use it in the place of the dev split,
            of which no row is trained on or evaluated then. Which rows is always the same random
            choice; the test split stays as it is.

    Raises:
        ValueError: ``holdout`` is no share between 0 and 1. That it leaves nothing to train on, or
            takes nothing, is found when the rows are read.
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
        self.save_hyperparameters(logger=False)  # several names are the model's hyperparameters too
        for name, value in self.hparams.items():
            if isinstance(value, PathLike):  # checkpoints hold plain data only
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

    @abstractmethod
    def read(self) -> dict[str, Dataset]:
        """The raw rows of each split there is."""

    @abstractmethod
    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Columns of tokens from columns of rows; with ``labels`` unless ``split`` is predict."""

    @property
    def labels(self) -> list[str] | None:
        """The names of the classes, by index; None where the target is no class."""
        return None

    @property
    def pair(self) -> bool:
        """Whether a row is a pair of texts."""
        return False

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer."""
        tokenizer = load_tokenizer(self.backbone)
        if self.max_length > tokenizer.model_max_length:
            raise ValueError(
                f"max_length is {self.max_length}, but {self.backbone!r} takes at most "
                f"{tokenizer.model_max_length} tokens"
            )
        return tokenizer

    @cached_property
    def splits(self) -> dict[str, Dataset]:
        """The raw rows of each split, ``limit_train``, ``holdout`` and ``limit_eval`` applied.

        Raises:
            ValueError: ``holdout`` leaves nothing to train on, takes nothing, or has no train split
                to take from.
        """
        splits = self.read()
        if "train" in splits:
            splits["train"] = _choose(splits["train"], self.limit_train)
        if self.holdout is not None:
            splits["train"], splits["dev"] = _hold_out(splits.get("train"), self.holdout)
        return {
            name: rows if name == "train" else _choose(rows, self.limit_eval)
            for name, rows in splits.items()
        }

    def rows(self, split: str) -> Dataset:
        """The raw rows of ``split``, in the order in which they are predicted.

        Raises:
            ValueError: if there is no such split.
        """
        name = "test" if split == "predict" and split not in self.splits else split
        if name not in self.splits:
            raise ValueError(
                f"{type(self).__name__} has no {split} split, only {', '.join(self.splits)}"
            )
        return self.splits[name]

    def tokens(self, split: str) -> Dataset:
        """The tokenised rows of ``split``; kept, and cached on disk where the rows come from."""
        if split not in self._encoded:
            raw = self.rows(split)
            self._encoded[split] = raw.map(
                partial(self._encode, split=split),
                batched=True,
                remove_columns=raw.column_names,
                desc=f"tokenising {split}",
                new_fingerprint=self._fingerprint(raw, split),
            )
        return self._encoded[split]

    def prepare_data(self) -> None:
        """Fill the cache in one process, before the others read it."""
        self.setup(self.trainer.state.fn if self.trainer and self.trainer.state.fn else "fit")

    def setup(self, stage: str) -> None:
        """Read and tokenise what ``stage`` needs."""
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
        return self._in_order("predict", self.eval_batch_size or self.batch_size)

    def _evaluation(self, split: str) -> DataLoader:
        return self._loader(split, self.eval_batch_size or self.batch_size)

    def _loader(self, split: str, batch_size: int) -> DataLoader:
        if getattr(self.trainer, "overfit_batches", 0):  # the same batches in every epoch
            return self._in_order(split, batch_size)
        rows = self.tokens(split)
        sampler = BucketSampler(
            rows["length"][:] if self.bucketed else np.ones(len(rows)),
            batch_size=batch_size,
            shuffle=split == "train",
            seed=self.seed,
            **self._replicas(),
        )
        options = {"sampler": sampler, "batch_size": None, **self._options()}
        if split != "train":
            return DataLoader(rows.remove_columns("length"), **options)
        loader = ResumableLoader(rows.remove_columns("length"), **options)
        if self.trainer is not None:
            loader.finished = self._finished
        return loader

    def _finished(self) -> int:
        """Batches of this epoch that the weights have seen."""
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return progress.processed  # type: ignore[attr-defined]

    def _in_order(self, split: str, batch_size: int) -> DataLoader:
        """A plain loader, in which Lightning can follow and share out the rows by itself."""
        rows = self.tokens(split).remove_columns("length")
        return DataLoader(
            rows, sampler=SequentialSampler(rows), batch_size=batch_size, **self._options()
        )

    def _replicas(self) -> dict[str, int]:
        """How many processes share the data: the strategy knows, and not all of them always do."""
        return (self.trainer.distributed_sampler_kwargs or {}) if self.trainer is not None else {}

    def _options(self) -> dict[str, Any]:
        device = self.trainer.strategy.root_device.type if self.trainer is not None else "cpu"
        return {
            "collate_fn": Collate(self.tokenizer, self.widths()),
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": device == "cuda",
        }

    def widths(self) -> dict[str, int]:
        """The columns that are padded to a fixed number of tokens."""
        if self.pad == "longest":
            return {}
        return dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), self.max_length)

    def _encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        columns = self.encode(rows, split)
        return {**columns, "length": [len(ids) for ids in columns["input_ids"]]}

    def _fingerprint(self, raw: Dataset, split: str) -> str:
        """A name for the tokenised rows; the tokenizer's own state changes as it is used."""
        recipe = {k: v for k, v in self.hparams.items() if k not in UNRELATED and k[0] != "_"}
        kind = FORMAT, type(self).__name__, split == "predict"
        return Hasher.hash((raw._fingerprint, kind, recipe, self._vocabulary))

    @cached_property
    def _vocabulary(self) -> Any:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return type(self.tokenizer).__name__, self.tokenizer.get_vocab()
        parts = json.loads(backend.to_str())
        return {k: v for k, v in parts.items() if k not in ("truncation", "padding")}


# Arguments that leave the tokens of a row as they are (what they select changes the raw rows).
UNRELATED = {
    "backbone",
    "batch_size",
    "eval_batch_size",
    "pad",
    "bucketed",
    "num_workers",
    "seed",
    "limit_train",
    "limit_eval",
    "holdout",
}


def _choose(rows: Dataset, limit: int | None) -> Dataset:
    """``limit`` of the rows, the same ones each time, in their order."""
    if limit is None or limit >= len(rows):
        return rows
    return rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:limit]))


def _hold_out(rows: Dataset | None, share: float) -> tuple[Dataset, Dataset]:
    """The rows without ``share`` of them, and that share: the same ones each time."""
    if rows is None:
        raise ValueError(f"holdout is {share} of the training rows, but there is no train split")
    count = round(share * len(rows))
    if not 0 < count < len(rows):
        raise ValueError(
            f"holdout={share} holds {count} of {len(rows)} training rows out: it must take at "
            "least one and leave one; change it, or take more rows"
        )
    order = np.random.default_rng(HOLDOUT).permutation(len(rows))
    return rows.select(np.sort(order[count:])), rows.select(np.sort(order[:count]))
