"""Classification and regression of the user's own texts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

from datasets import ClassLabel

from lightning_pelt.data.reading import Class, Column, Number, Text, label_names
from lightning_pelt.data.tables import TableDataModule


class TextClassification(TableDataModule):
    """A label, or a number, for a text or a pair of texts.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        text: name of the column of the text.
        text2: name of the column of the second text, for pairs.
        label: name of the column of the label.
        labels: the names of the classes, by index; by default those in train, sorted.
        task: "regression" reads the label as a number; there are no classes then.
        **table: see :class:`TableDataModule` (train, dev, test, predict, dataset, ...).
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
        """Whether there is a second text."""
        return self.text2 is not None

    @cached_property
    def labels(self) -> list[str] | None:
        """The names of the classes, by index; None for regression.

        Raises:
            ValueError: if neither ``labels`` nor ``train`` says what they are.
        """
        if self.task == "regression":
            return None
        if self.given_labels:
            return [str(label) for label in self.given_labels]
        if "train" not in self.places:
            raise ValueError("the labels are unknown: give labels=[...], or train= to collect them")
        return label_names(self.tables["train"], self.label)

    def strings(self) -> list[str]:
        """All columns of ours: "007" and "NA" are texts and labels like any other."""
        return [self.text, self.label, *([self.text2] if self.text2 else [])]

    def columns(self, split: str) -> Mapping[str, Column]:
        """``text``, ``text2`` for pairs, and ``label`` unless it is to be predicted."""
        columns = {"text": Column(self.text, Text())}
        if self.text2:
            columns["text2"] = Column(self.text2, Text())
        if split != "predict":
            columns["label"] = Column(self.label, self._kind(split))
        return columns

    def _kind(self, split: str) -> Number | Class:
        if self.labels is None:
            return Number()
        feature = self.tables[split].rows.features.get(self.label)
        return Class(tuple(self.labels), indexed=isinstance(feature, ClassLabel))

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens, and the label's index or number."""
        tokens = self.tokenizer(
            rows["text"], rows.get("text2"), truncation=True, max_length=self.max_length
        )
        return dict(tokens) if split == "predict" else {**tokens, "labels": rows["label"]}
