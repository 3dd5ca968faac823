"""Plain text, for decoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_pelt.data.collate import IGNORED
from lightning_pelt.data.reading import Column, Text
from lightning_pelt.data.tables import TableDataModule


class CausalText(TableDataModule):
    """The next token of a text. The labels of a batch are its ``input_ids``, -100 on padding.

    With a ``prompt`` column a row is the prompt followed by the text, as they stand: the tokens of
    the prompt get no loss, and only the prompt is given when predicting. A row that is too long
    loses the beginning of its prompt, so that there is always text to learn.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        text: name of the column of the text.
        prompt: name of the column of what stands before the text.
        end: whether the end-of-text token follows a text that is not cut.
        **table: see :class:`TableDataModule` (train, dev, test, predict, dataset, ...).
    """

    def __init__(
        self,
        backbone: str,
        *,
        text: str = "text",
        prompt: str | None = None,
        end: bool = True,
        **table: Any,
    ) -> None:
        super().__init__(backbone, **table)
        self.text = text
        self.prompt = prompt
        self.end = end

    def strings(self) -> list[str]:
        """Text and prompt."""
        return [self.text, *([self.prompt] if self.prompt else [])]

    def columns(self, split: str) -> Mapping[str, Column]:
        """``text``, and ``prompt`` where there is one; it suffices for a prediction."""
        columns = {}
        if self.prompt:
            columns["prompt"] = Column(self.prompt, Text())
        if not self.prompt or split != "predict":
            columns["text"] = Column(self.text, Text())
        return columns

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens of prompt and text, and ``labels``: the same, -100 on the prompt's."""
        if split == "predict":
            begun = self.tokenizer(rows["prompt" if self.prompt else "text"])["input_ids"]
            return _columns([self._open(ids)[-self.max_length :] for ids in begun])
        special = self.prompt is None  # else the prompt begins with the special tokens
        texts = self.tokenizer(rows["text"], add_special_tokens=special)["input_ids"]
        texts = [self._closed(ids) for ids in texts]
        if self.prompt is None:
            return {**_columns(texts), "labels": texts}
        ids, labels = [], []
        for prompt, text in zip(self.tokenizer(rows["prompt"])["input_ids"], texts, strict=True):
            room = self.max_length - len(text)
            prompt = self._open(prompt)[-room:] if room else []
            ids.append([*prompt, *text])
            labels.append([IGNORED] * len(prompt) + text)
        return {**_columns(ids), "labels": labels}

    def _open(self, ids: list[int]) -> list[int]:
        """Without the end-of-text token, with which some tokenizers close everything."""
        return ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] else ids

    def _closed(self, ids: list[int]) -> list[int]:
        """With or without that token, as ``end`` has it, and cut to ``max_length``."""
        ids = self._open(ids)[: self.max_length]
        end = self.tokenizer.eos_token_id
        if not self.end or end is None:
            return ids
        return [*ids, end][: self.max_length]

    def widths(self) -> dict[str, int]:
        """The labels are as wide as the text."""
        widths = super().widths()
        return {**widths, "labels": self.max_length} if widths else {}


def _columns(ids: list[list[int]]) -> dict[str, list[Any]]:
    return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
