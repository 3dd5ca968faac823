"""Pairs of texts that belong together, with or without texts that do not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from reprlib import repr as shortened
from typing import Any, ClassVar

from datasets import List, Value

from lightning_pelt.data._columns import Column, Number, Text
from lightning_pelt.data._several_texts import HASHES, CollateSeveral, grouped
from lightning_pelt.data.table import TableDataModule

ANCHOR, POSITIVE, NEGATIVES, SCORE = "anchor", "positive", "negatives", "score"


@dataclass(frozen=True)
class Negatives:
    """The texts of a cell with a list, or of one or more cells. Empty cells are left out.

    Args:
        listed: whether the cell holds a list.
    """

    listed: bool
    feature: ClassVar[Any] = List(Value("string"))

    def __call__(self, value: Any) -> list[str]:
        if not self.listed:
            value = value if isinstance(value, tuple) else (value,)
            return [text for text in map(Text(may_be_empty=True), value) if text.strip()]
        if isinstance(value, str) and value.strip()[:1] == "[":  # in a CSV file
            value = json.loads(value)
        if value is None:
            return []
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ValueError(
                f"{shortened(value)} is not a list of texts: name columns of single texts as a "
                "list, negatives=[...]"
            )
        return list(map(Text(), value))


class SentencePairs(TableDataModule):
    """Pairs of texts that belong together: a question and a passage, or two paraphrases.

    The positives of the other rows of a batch are the negatives of an anchor, so that larger
    batches make the task harder. Rows may have hard negatives of their own, and different numbers
    of them.

    A batch has ``input_ids``, ``attention_mask`` and, if the tokenizer returns them,
    ``token_type_ids``, all (B, n, T), where the n texts of a row are its anchor, its positive, and
    its negatives; ``present`` (B, n), true for the texts that a row has; and ``text_hashes``
    (B, n), by which equal texts are found.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        anchor: name of the column of the anchor, such as a question. Rows to predict need no other.
        positive: name of the column of the text that belongs to it.
        negatives: names of columns of texts that do not belong to it, which may be empty, or the
            name of a column of lists of texts.
        score: name of the column of a number that says how similar anchor and positive are, for
            :class:`~lightning_pelt.tasks.SentenceSimilarity`. Rows to predict then need both texts.
        anchor_prompt: put before every anchor, such as "query: " for E5.
        positive_prompt: put before every positive and negative, such as "passage: ".
        **table: see :class:`TableDataModule` (train, dev, test, predict, dataset, ...).

    Raises:
        ValueError: there are both negatives and scores.

    Example::

        data = SentencePairs(
            "sentence-transformers/all-MiniLM-L6-v2",
            train="nli.jsonl",
            negatives=["contradiction"],
            batch_size=128,
        )
    """

    def __init__(
        self,
        backbone: str,
        *,
        anchor: str = "anchor",
        positive: str = "positive",
        negatives: str | list[str] | None = None,
        score: str | None = None,
        anchor_prompt: str = "",
        positive_prompt: str = "",
        **table: Any,
    ) -> None:
        super().__init__(backbone, **table)
        if score and negatives:
            raise ValueError("pairs with a score have no negatives: give score= or negatives=")
        self.anchor, self.positive = anchor, positive
        self.negatives, self.score = negatives, score
        self.anchor_prompt, self.positive_prompt = anchor_prompt, positive_prompt

    def columns(self, split: str) -> Mapping[str, Column]:
        """``anchor``, and except to predict ``positive`` and ``negatives`` if there are some."""
        columns = {ANCHOR: Column(self.anchor, Text())}
        if split == "predict" and not self.score:
            return columns
        columns[POSITIVE] = Column(self.positive, Text())
        if isinstance(self.negatives, str):
            columns[NEGATIVES] = Column(self.negatives, Negatives(listed=True))
        elif self.negatives:
            first, *more = self.negatives
            columns[NEGATIVES] = Column(first, Negatives(listed=False), tuple(more))
        if self.score and split != "predict":
            columns[SCORE] = Column(self.score, Number())
        return columns

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens and hashes of the texts of each row."""
        texts = self._texts(rows)
        counts = [len(row) for row in texts]
        flat = [text for row in texts for text in row]
        tokens = self.tokenizer(flat, truncation=True, max_length=self.max_length)
        columns: dict[str, list[Any]] = {
            name: grouped(values, counts) for name, values in tokens.items()
        }
        columns["length"] = [max(map(len, row)) for row in columns["input_ids"]]
        if split == "predict":
            return columns
        if SCORE in rows:
            columns["labels"] = rows[SCORE]
        return {**columns, HASHES: [[_hash(text) for text in row] for row in texts]}

    def _texts(self, rows: Mapping[str, list[Any]]) -> list[list[str]]:
        """The texts of each row with their prompts, in the order of the roles."""
        found = [[self.anchor_prompt + text] for text in rows[ANCHOR]]
        for row, text in zip(found, rows.get(POSITIVE, ()), strict=False):
            row.append(self.positive_prompt + text)
        for row, negatives in zip(found, rows.get(NEGATIVES, ()), strict=False):
            row += [self.positive_prompt + text for text in negatives]
        return found

    def collate(self) -> CollateSeveral:
        """Pads the texts of a batch."""
        return CollateSeveral(self.tokenizer, self.fixed_lengths())


def _hash(text: str) -> int:
    """A number of 64 bits: equal for equal texts, in all processes."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
