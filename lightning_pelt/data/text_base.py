"""Base of the data modules of texts: tokenize once, and pad per batch."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lightning_pelt.anatomy.positions import backbone_position_limit
from lightning_pelt.data._cache_key import cache_key, vocabulary_digest
from lightning_pelt.data.base import RowsDataModule
from lightning_pelt.data.collator import Collate
from lightning_pelt.utils.backbone import load_tokenizer


class TextDataModule(RowsDataModule):
    """Base of the data modules of texts. A child reads the rows and converts a row to tokens.

    A batch is a dict of tensors: ``input_ids``, ``attention_mask`` and, if the tokenizer returns
    them, ``token_type_ids``, all (B, T) int64; and ``labels``, except in prediction.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        max_length: maximum number of tokens per row; longer rows are cut.
        pad: to the longest row of each batch, or always to ``max_length``.
        **common: see :class:`RowsDataModule` (batch_size, num_workers, seed, holdout, ...).

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
        max_length: int = 128,
        pad: Literal["longest", "max_length"] = "longest",
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.max_length = max_length
        self.pad = pad
        self._encoded: dict[str, Dataset] = {}

    @abstractmethod
    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens of the rows, column by column, with ``labels`` unless ``split`` is predict.

        A column ``length``, by which rows are batched, is the number of ``input_ids`` by default.
        """

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

    def examples(self, split: str) -> Dataset:
        """The columns of :meth:`tokens` that make a batch."""
        return self.tokens(split).remove_columns("length")

    def lengths(self, split: str) -> np.ndarray:
        """The number of tokens of each row of ``split``."""
        return np.asarray(self.tokens(split)["length"][:], dtype=np.int64)

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

    def collate(self) -> Collate:
        """Pads the columns of a batch."""
        return Collate(self.tokenizer, self.fixed_lengths())

    def fixed_lengths(self) -> dict[str, int]:
        """Fixed numbers of tokens by column; empty to pad to the longest row."""
        if self.pad == "longest":
            return {}
        return dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), self.max_length)

    def _encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        columns = self.encode(rows, split)
        return {"length": [len(ids) for ids in columns["input_ids"]], **columns}

    def _cache_key(self, raw: Dataset, split: str) -> str:
        kind = type(self).__name__, split if split in ("train", "predict") else "evaluation"
        return cache_key(raw, kind, self.hparams, self._vocabulary)

    @cached_property
    def _vocabulary(self) -> str:
        return vocabulary_digest(self.tokenizer)
