"""Shows rows of a data module as texts, and which of their tokens are trained."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from tabulate import tabulate
from transformers import PreTrainedTokenizerBase

from lightning_pelt.data.collator import IGNORED
from lightning_pelt.data.packing import POSITIONS
from lightning_pelt.data.text_base import TextDataModule

GREEN, PLAIN = "\033[1;32m", "\033[0m"
MARKS = "{+", "+}"  # as `git diff --word-diff` marks what is added
NUMBERS_WIDTH = 30  # characters of a table beside the texts


class Part(NamedTuple):
    """A text of a row, and whether its tokens are trained."""

    text: str
    trained: bool


class Row(NamedTuple):
    """A row: its number of tokens, how many of them are trained, and its text in parts."""

    tokens: int
    trained: int
    parts: list[Part]


def preview(data: Any, count: int, *, split: str = "train", colour: bool = False) -> str:
    """A table of the first rows of a split, in which the trained tokens are marked.

    Of an encoder-decoder, the trained tokens are those of the target, which follows the source.

    Args:
        data: a data module with labels of tokens.
        count: number of rows; of packed rows, each with several examples.
        split: train, dev or test.
        colour: whether trained tokens are green, or else between ``{+`` and ``+}``.

    Raises:
        ValueError: ``count`` is below 1, or the labels of ``data`` are not labels of tokens.
    """
    if count < 1:
        raise ValueError(f"{count} rows cannot be shown: expected at least 1")
    rows = _rows(data, count, split)
    width = max(20, shutil.get_terminal_size((100, 24)).columns - NUMBERS_WIDTH)
    table = [
        (number, row.tokens, row.trained, _shown(row.parts, width=width, colour=colour))
        for number, row in enumerate(rows)
    ]
    note = "green" if colour else f"between {MARKS[0]} and {MARKS[1]}"
    head = ["row", "tokens", "trained", f"text (trained tokens are {note})"]
    return tabulate(table, head, tablefmt="grid", disable_numparse=True, preserve_whitespace=True)


def _rows(data: Any, count: int, split: str) -> list[Row]:
    rows: Any = {}
    if isinstance(data, TextDataModule):
        examples = data.examples(split)
        rows = examples[: min(count, len(examples))]
    labels = rows.get("labels", [])
    if not labels or not all(isinstance(each, Sequence) for each in labels):
        raise ValueError(
            f"{type(data).__name__} has no labels of tokens, so there are no trained tokens to "
            "show: ChatText, CausalText and TextToText have them"
        )
    names = [name for name in ("input_ids", "labels", POSITIONS) if name in rows]
    return [
        _row(data.tokenizer, *values, classes=len(data.labels or ()))
        for values in zip(*(rows[name] for name in names), strict=True)
    ]


def _row(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    labels: Sequence[int],
    positions: Sequence[int] = (),
    *,
    classes: int = 0,
) -> Row:
    trained = [label != IGNORED for label in labels]
    aligned = len(ids) == len(labels) and (
        all(label in (IGNORED, i) for i, label in zip(ids, labels, strict=True))
        or all(label < classes for label in labels)  # the class of each word
    )
    if aligned:
        parts = list(_parts(tokenizer, ids, trained, positions))
    else:  # a source, and the target of a decoder
        target = [label for label in labels if label != IGNORED]
        parts = [
            Part(f"{tokenizer.decode([*ids])}\n", False),
            Part(str(tokenizer.decode(target)), True),
        ]
    return Row(len(ids) + (0 if aligned else len(labels)), sum(trained), parts)


def _parts(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    trained: Sequence[bool],
    positions: Sequence[int],
) -> Iterator[Part]:
    """The text of a row in runs of tokens; each example of a packed row starts on a new line."""
    starts = [i for i, position in enumerate(positions) if position == 0 and i]
    for first, last in zip([0, *starts], [*starts, len(ids)], strict=True):
        shown = 0  # characters of the example so far: a run alone may be decoded without a space
        for flag, run in groupby(range(first, last), key=lambda i: trained[i]):
            text = str(tokenizer.decode([*ids[first : max(run) + 1]]))
            yield Part(text[shown:], flag)
            shown = len(text)
        if last < len(ids):
            yield Part("\n", False)


def _shown(parts: Sequence[Part], *, width: int, colour: bool) -> str:
    """The text in lines of at most about ``width`` characters, with its trained parts marked."""
    start, end = (GREEN, PLAIN) if colour else MARKS
    lines: list[str] = []
    line, used = "", 0
    for part in parts:
        for number, text in enumerate(part.text.split("\n")):
            if number:
                lines.append(line)
                line, used = "", 0
            for piece in textwrap.wrap(text, width, drop_whitespace=False) if text else ():
                if used and used + len(piece) > width:
                    lines.append(line)
                    line, used = "", 0
                line += f"{start}{piece}{end}" if part.trained else piece
                used += len(piece)
    return "\n".join([*lines, line])
