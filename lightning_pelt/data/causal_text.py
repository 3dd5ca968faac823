"""Plain texts of files or hub data sets, for decoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_pelt.data._columns import Column, Text
from lightning_pelt.data.collator import IGNORED
from lightning_pelt.data.table import TableDataModule


class CausalText(TableDataModule):
    """Texts for next-token prediction. The labels are the ``input_ids``, with -100 on padding.

    With a ``prompt`` column a row is the prompt followed directly by the text. The tokens of the
    prompt get no loss, and prediction starts from the prompt alone. In a row that is too long the
    beginning of the prompt is cut, so that the text remains. Lists of chat messages are refused:
    render them with the tokenizer's ``apply_chat_template`` first.

    Args:
        backbone: hub id or folder whose tokenizer is used.
        text: name of the column of the text.
        prompt: name of the column of the prompt.
        end: whether to append the end-of-text token to a text that is not cut.
        **table: see :class:`TableDataModule` (train, dev, test, predict, dataset, ...).

    Example::

        data = CausalText("gpt2", train="train.jsonl", prompt="question", text="answer")
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

    def columns(self, split: str) -> Mapping[str, Column]:
        """``text``, and ``prompt`` if there is one; a row to predict needs only the prompt."""
        columns = {}
        if self.prompt:
            columns["prompt"] = Column(self.prompt, Text(spoken=True))
        if not self.prompt or split != "predict":
            columns["text"] = Column(self.text, Text(spoken=True))
        return columns

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """Tokens of prompt and text, and ``labels``: the same with -100 on the prompt."""
        if split == "predict":
            starts = self.tokenizer(rows["prompt" if self.prompt else "text"])["input_ids"]
            return _columns([self._without_end(ids)[-self.max_length :] for ids in starts])
        special = self.prompt is None  # else the prompt starts with the special tokens
        texts = self.tokenizer(rows["text"], add_special_tokens=special)["input_ids"]
        texts = [self._with_end(ids) for ids in texts]
        if self.prompt is None:
            return {**_columns(texts), "labels": texts}
        ids, labels = [], []
        for prompt, text in zip(self.tokenizer(rows["prompt"])["input_ids"], texts, strict=True):
            room = self.max_length - len(text)
            prompt = self._without_end(prompt)[-room:] if room else []
            ids.append([*prompt, *text])
            labels.append([IGNORED] * len(prompt) + text)
        return {**_columns(ids), "labels": labels}

    def _without_end(self, ids: list[int]) -> list[int]:
        """Remove the end-of-text token that some tokenizers append."""
        return ids[:-1] if ids[-1:] == [self.tokenizer.eos_token_id] else ids

    def _with_end(self, ids: list[int]) -> list[int]:
        """Append the end-of-text token if ``end`` is set, and cut to ``max_length``."""
        ids = self._without_end(ids)[: self.max_length]
        end = self.tokenizer.eos_token_id
        if not self.end or end is None:
            return ids
        return [*ids, end][: self.max_length]

    def fixed_lengths(self) -> dict[str, int]:
        """With a fixed length, that of the labels too."""
        lengths = super().fixed_lengths()
        return {**lengths, "labels": self.max_length} if lengths else {}


def _columns(ids: list[list[int]]) -> dict[str, list[Any]]:
    return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
