"""Texts of files or hub data sets, with labels or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from lightning_pelt.data._class_labels import class_names, label_kind, warn_of_one_label
from lightning_pelt.data._columns import Column, Label, Number, Text
from lightning_pelt.data.table import TableDataModule


class TextClassification(TableDataModule):
    """Texts or pairs of texts with a label or a number.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        text: name of the column of the text.
        text2: name of the column of the second text, for pairs.
        label: name of the column of the label.
        labels: names of the classes by index; by default the sorted labels of train.
        task: "regression" reads the label as a number.
        **table: see :class:`TableDataModule` (train, dev, test, predict, dataset, ...).

    Example::

        data = TextClassification(
            "sentence-transformers/all-MiniLM-L6-v2",
            train="train.csv",
            test="test.csv",
            text="review",
            label="stars",
        )
    """

    def __init__(
        self,
        backbone: str,
        *,
        text: str = "text",
        text2: str | None = None,
        label: str = "label",
        labels: list[str] | None = None,
        task: Literal["classification", "regression"] = "classification",
        **table: Any,
    ) -> None:
        super().__init__(backbone, **table)
        self.text = text
        self.text2 = text2
        self.label = label
        self.given_labels = labels
        self.task = task

    @property
    def pair(self) -> bool:
        """Whether a row has a second text."""
        return self.text2 is not None

    @cached_property
    def labels(self) -> list[str] | None:
        """Names of the classes by index; None for regression.

        Raises:
            ValueError: neither ``labels`` nor ``train`` is given.
        """
        if self.task == "regression":
            return None
        return class_names(self.given_labels, self.sources, self.label)

    def columns(self, split: str) -> Mapping[str, Column]:
        """``text``, ``text2`` for pairs, and ``label`` unless the split is predict."""
        columns = {"text": Column(self.text, Text())}
        if self.text2:
            columns["text2"] = Column(self.text2, Text())
        if split != "predict":
            columns["label"] = Column(self.label, self._kind(split))
        return columns

    def _kind(self, split: str) -> Number | Label:
        if self.labels is None:
            return Number()
        return label_kind(self.labels, self.tables[split], self.label)

    def setup(self, stage: str) -> None:
        """Read and tokenize the splits of ``stage``. Warn if all training rows have one label."""
        super().setup(stage)
        if stage == "fit" and self.labels is not None:
            source = self.tables["train"].source
            warn_of_one_label(self.rows("train"), self.labels, source, self.label)

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens, and the index of the label or the number."""
        tokens = self.tokenizer(
            rows["text"], rows.get("text2"), truncation=True, max_length=self.max_length
        )
        return dict(tokens) if split == "predict" else {**tokens, "labels": rows["label"]}
