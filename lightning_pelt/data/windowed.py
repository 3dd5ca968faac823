"""Base of the data modules of long texts, which are read in windows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lightning_pelt.data._table_io import Table, convert_columns
from lightning_pelt.data._window_batch import PER_TOKEN, CollateWindows
from lightning_pelt.data._windows import check_fast
from lightning_pelt.data.table import TableDataModule


class WindowedText(TableDataModule):
    """Base of the data modules of texts that are longer than ``max_length``.

    In training each window is a row by itself. In evaluation and prediction a row of the file stays
    one item with all its windows, so that metrics and predictions are per row; the model reads at
    most as many windows at once as the batch size.

    Args:
        backbone: hub id or folder whose fast tokenizer is used.
        max_length: maximum number of tokens of a window.
        stride: number of tokens that a window shares with the one before it.
        **table: see :class:`TableDataModule` (train, dev, test, predict, dataset, ...).

    Raises:
        ValueError: ``stride`` is negative; when rows are read, the tokenizer is not a fast one, or
            ``stride`` does not leave room for other tokens.
    """

    def __init__(
        self, backbone: str, *, max_length: int = 128, stride: int = 32, **table: Any
    ) -> None:
        super().__init__(backbone, max_length=max_length, **table)
        if stride < 0:
            raise ValueError(f"stride is {stride}, expected at least 0")
        self.stride = stride

    @abstractmethod
    def check(self, table: Table, rows: Dataset, split: str) -> None:
        """Check converted rows whose columns must fit one another.

        Raises:
            ValueError: they do not; the message names the file and the row.
        """

    @abstractmethod
    def most_around(self) -> int:
        """The most tokens of a window that are not of the text that is divided."""

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer.

        Raises:
            ValueError: see the class.
        """
        tokenizer = super().tokenizer
        check_fast(tokenizer, self.backbone, type(self).__name__)
        return tokenizer

    @cached_property
    def room(self) -> int:
        """The number of tokens of the text that every window has room for.

        Raises:
            ValueError: it is not more than ``stride``.
        """
        around = self.most_around()
        room = self.max_length - around
        if room <= self.stride:
            raise ValueError(
                f"max_length={self.max_length} leaves {room} tokens of a window beside {around} "
                f"others, and a window shares stride={self.stride} with the one before it: raise "
                "max_length, or lower stride"
            )
        return room

    def read(self) -> dict[str, Dataset]:
        """The converted rows of each split, checked."""
        for split, table in self.tables.items():
            rows = convert_columns(table, self.columns(split), desc=f"reading {split}")
            self.check(table, rows, split)
        return super().read()

    def collate(self) -> Callable[[Any], dict[str, Any]]:  # type: ignore[override]
        """Pads the windows of a batch."""
        at_once = self.eval_batch_size or self.batch_size
        return CollateWindows(self.tokenizer, self.fixed_lengths(), at_once=at_once)

    def fixed_lengths(self) -> dict[str, int]:
        """As of a text, and of every other column with a value per token."""
        fixed = super().fixed_lengths()
        more = (*PER_TOKEN, "labels") if fixed else ()
        return {**fixed, **dict.fromkeys(more, self.max_length)}

    def _encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        columns = self.encode(rows, split)
        ids = columns["input_ids"]
        if split != "train":  # the longest window of each row
            return {**columns, "length": [max(map(len, windows)) for windows in ids]}
        return {**columns, "length": [len(window) for window in ids]}


def gather(windows: list[list[dict[str, Any]]], *, apart: bool) -> dict[str, list[Any]]:
    """The columns of the windows of several rows.

    Args:
        windows: of each row, all with the same names.
        apart: each window is a row by itself; otherwise a row has a list of windows.
    """
    names = windows[0][0]
    if apart:
        return {name: [window[name] for row in windows for window in row] for name in names}
    return {name: [[window[name] for window in row] for row in windows] for name in names}


def model_columns(encoded: Mapping[str, Any], row: int) -> dict[str, list[int]]:
    """The inputs of the model of one row that a tokenizer returned."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: encoded[name][row] for name in names if name in encoded}
