"""Texts with any number of labels each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from lightning_pelt.data._columns import Column, Text
from lightning_pelt.data._label_sets import Flag, set_kind, set_names
from lightning_pelt.data._table_io import check_column
from lightning_pelt.data.table import TableDataModule

FLAG = "label: {}"  # name of the column of a label among the converted rows


class MultiLabelText(TableDataModule):
    """Texts or pairs of texts with a set of labels, which may be empty.

    The labels of a row are a list of names; with ``separator`` a text such as "sports;politics"; or
    with ``label_columns`` a 0 or 1 in the column of each label. A batch has ``labels``
    (B, labels) int64, 0 or 1.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        text: name of the column of the text.
        text2: name of the column of the second text, for pairs.
        label: name of the column of the labels.
        labels: names of the labels by index; by default the sorted labels of train.
        separator: what separates the labels in a text.
        label_columns: names of the columns of the labels, one each.
        **table: see :class:`TableDataModule` (train, dev, test, predict, dataset, ...).

    Raises:
        ValueError: ``label_columns`` are given with ``labels`` or ``separator``, or ``separator``
            is empty.

    Example::

        data = MultiLabelText(
            "sentence-transformers/all-MiniLM-L6-v2",
            train="train.csv",
            label="topics",
            separator=";",
        )
    """

    def __init__(
        self,
        backbone: str,
        *,
        text: str = "text",
        text2: str | None = None,
        label: str = "labels",
        labels: list[str] | None = None,
        separator: str | None = None,
        label_columns: list[str] | None = None,
        **table: Any,
    ) -> None:
        super().__init__(backbone, **table)
        if separator == "":
            raise ValueError('separator is empty: name what separates labels, such as ";"')
        if label_columns and (labels or separator):
            raise ValueError(
                "label_columns names the labels and where they are: leave out labels and separator"
            )
        self.text = text
        self.text2 = text2
        self.label = label
        self.given_labels = labels
        self.separator = separator
        self.label_columns = label_columns

    @property
    def pair(self) -> bool:
        """Whether a row has a second text."""
        return self.text2 is not None

    @cached_property
    def labels(self) -> list[str]:
        """Names of the labels by index.

        Raises:
            ValueError: neither ``labels``, ``label_columns`` nor ``train`` is given.
        """
        if given := self.label_columns or self.given_labels:
            return [str(label) for label in given]
        if "train" not in self.sources.locations:
            raise ValueError("the labels are unknown: give labels=[...], or train= to collect them")
        return set_names(self.tables["train"], self.label, self.separator)

    def columns(self, split: str) -> Mapping[str, Column]:
        """``text``, ``text2`` for pairs, and the labels unless the split is predict."""
        columns = {"text": Column(self.text, Text())}
        if self.text2:
            columns["text2"] = Column(self.text2, Text())
        if split == "predict":
            return columns
        if self.label_columns:
            flags = {FLAG.format(name): Column(name, Flag()) for name in self.label_columns}
            return {**columns, **flags}
        table = self.tables[split]
        check_column(table, self.label)
        kind = set_kind(self.labels, table, self.label, self.separator)
        return {**columns, "labels": Column(self.label, kind)}

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens, and 0 or 1 for each label."""
        tokens = self.tokenizer(
            rows["text"], rows.get("text2"), truncation=True, max_length=self.max_length
        )
        if split == "predict":
            return dict(tokens)
        if not self.label_columns:
            return {**tokens, "labels": rows["labels"]}
        flags = zip(*(rows[FLAG.format(name)] for name in self.label_columns), strict=True)
        return {**tokens, "labels": [list(row) for row in flags]}
