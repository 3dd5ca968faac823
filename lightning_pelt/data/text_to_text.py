"""Source and target texts of files or hub data sets, for encoder-decoders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_pelt.data._columns import Column, Text
from lightning_pelt.data.table import TableDataModule


class TextToText(TableDataModule):
    """Source texts with target texts. The labels of a batch are the tokens of the targets.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        source: name of the column of the source.
        target: name of the column of the target.
        prefix: prepended to each source ("summarize: ").
        max_target_length: tokens per target; by default ``max_length``.
        label_names: all possible targets, for metrics of classification.
        **table: see :class:`TableDataModule` (train, dev, test, predict, dataset, ...).

    Example::

        data = TextToText("t5-small", train="train.jsonl", source="article", target="summary")
    """

    def __init__(
        self,
        backbone: str,
        *,
        source: str = "source",
        target: str = "target",
        prefix: str = "",
        max_target_length: int | None = None,
        label_names: list[str] | None = None,
        **table: Any,
    ) -> None:
        super().__init__(backbone, **table)
        self.source = source
        self.target = target
        self.prefix = prefix
        self.max_target_length = max_target_length
        self.label_names = label_names

    @property
    def labels(self) -> list[str] | None:
        """``label_names``."""
        return self.label_names

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer.

        Raises:
            ValueError: ``max_length`` or ``max_target_length`` is more than the backbone takes.
        """
        if self.max_target_length is not None:
            self._check_length("max_target_length", self.max_target_length, self.positions)
        return super().tokenizer

    def columns(self, split: str) -> Mapping[str, Column]:
        """``source``, and ``target`` unless the split is predict."""
        columns = {"source": Column(self.source, Text())}
        if split != "predict":
            columns["target"] = Column(self.target, Text())
        return columns

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens of the prefixed source, and of the target as ``labels``."""
        sources = [self.prefix + source for source in rows["source"]]
        tokens = self.tokenizer(sources, truncation=True, max_length=self.max_length)
        if split == "predict":
            return dict(tokens)
        length = self.max_target_length or self.max_length
        return {**tokens, "labels": encode_targets(self.tokenizer, rows["target"], length)}


def encode_targets(
    tokenizer: PreTrainedTokenizerBase, targets: list[str], max_length: int
) -> list[list[int]]:
    """The token ids of target texts, as labels of the decoder."""
    return tokenizer(text_target=targets, truncation=True, max_length=max_length)["input_ids"]
