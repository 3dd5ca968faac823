"""Batches of rows that consist of windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_pelt.data.collator import IGNORED, Collate

ROW_OF_WINDOW = "row_of_window"  # (W,), the row of the batch that each window belongs to
WINDOWS_AT_ONCE = "windows_at_once"  # number of windows of one forward pass
WORD_OF_TOKEN = "word_of_token"  # (W, T), the word that is predicted at a token, or -1
WORDS = "words"  # (B,), number of words of each row
TAGS = "tags"  # (B, words), the index of the tag of each word; -100 after the last word
# (W, T): the first character of a token with which an answer may begin, and the end of one with
# which it may end; otherwise -1.
STARTS, ENDS = "starts", "ends"
# (W,), tokens of a window: of the answer, and the one that stands for no answer.
START, END, NULL = "start_positions", "end_positions", "null_positions"
CONTEXT, ANSWERS, ID = "context", "answers", "id"  # plain data of each row

PER_TOKEN = {WORD_OF_TOKEN: -1, STARTS: -1, ENDS: -1}  # and the value of padding
POSITIONS = (START, END, NULL)
PLAIN = (CONTEXT, ANSWERS, ID)
PER_ROW = (WORDS, TAGS, *PLAIN)
# What a model does not take.
NOT_INPUTS = frozenset({"labels", ROW_OF_WINDOW, *PER_TOKEN, *POSITIONS, *PER_ROW})


class CollateWindows(Collate):
    """Makes a batch of windows: of rows that are a window each, or of rows with all their windows.

    The windows of all rows become (W, T) tensors, and ``row_of_window`` (W,) int64 says which row
    of the batch each belongs to. Positions of tokens count the padding before them.

    Args:
        tokenizer: its padding tokens and padding side are used.
        lengths: fixed numbers of tokens by column.
        at_once: number of windows for one forward pass.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        lengths: Mapping[str, int] | None = None,
        *,
        at_once: int,
    ) -> None:
        super().__init__(tokenizer, lengths)
        self.fill |= PER_TOKEN
        self.at_once = at_once

    def __call__(
        self, rows: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Make a batch from columns (a slice of a data set) or from a list of rows."""
        if not isinstance(rows, Mapping):
            rows = {name: [row[name] for row in rows] for name in rows[0]}
        columns, more = dict(rows), dict[str, Any]()
        if isinstance(columns["input_ids"][0][0], list):
            counts = torch.tensor([len(windows) for windows in columns["input_ids"]])
            more[ROW_OF_WINDOW] = torch.repeat_interleave(torch.arange(len(counts)), counts)
            more[WINDOWS_AT_ONCE] = self.at_once
            for name in columns.keys() - set(PER_ROW):
                columns[name] = [window for windows in columns[name] for window in windows]
        batch = {name: self._column(name, values) for name, values in columns.items()}
        if self.left:
            for name in batch.keys() & set(POSITIONS):
                length = batch["input_ids"].shape[1]
                padding = [length - len(ids) for ids in columns["input_ids"]]
                batch[name] = batch[name] + torch.tensor(padding)
        return {**batch, **more}

    def _column(self, name: str, values: Sequence[Any]) -> Any:
        if name in PLAIN:
            return list(values)
        return _padded(values) if name == TAGS else self._tensor(name, values)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(B, words) int64, with -100 behind the last word of each row."""
    batch = torch.full((len(rows), max(map(len, rows))), IGNORED)
    for row, values in zip(batch, rows, strict=True):
        row[: len(values)] = torch.tensor(values, dtype=torch.int64)
    return batch
