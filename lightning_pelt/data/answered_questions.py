"""Questions with answers that are spans of a context."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import BatchEncoding

from lightning_pelt.data._answers import (
    Answer,
    Answers,
    Start,
    answer_tokens,
    check_answers,
    one_answer,
    visible,
)
from lightning_pelt.data._columns import Column, Text
from lightning_pelt.data._table_io import Table
from lightning_pelt.data._window_batch import ANSWERS, CONTEXT, END, ENDS, ID, NULL, START, STARTS
from lightning_pelt.data._windows import Span, cut, owners, spans
from lightning_pelt.data.windowed import WindowedText, gather, model_columns


class AnsweredQuestions(WindowedText):
    """Questions with a context, and answers that are spans of it, as in SQuAD 1.1 and 2.0.

    The answers of a row are ``{"text": [...], "answer_start": [...]}``, with empty lists for a
    question without an answer; or, with ``answer_start``, a text and a number in two columns, blank
    or -1 for no answer. Starts count characters from 0. Training uses the first answer of a row,
    evaluation all.

    Contexts that are too long are read in windows, each with the whole question. In training each
    window is a row; the target of a window without the answer is the token that stands for no
    answer: the tokenizer's ``cls`` token, or the last token of the window where there is none. In
    evaluation an answer begins in the window where its first token has the most context. Where the
    tokenizer puts no special token between two texts, as those of decoders, the question ends in a
    line break, and the window in the end-of-text token.

    Args:
        backbone: hub id or folder whose fast tokenizer is used.
        question: name of the column of the question.
        context: name of the column of the context.
        answers: name of the column of the answers.
        answer_start: name of the column of the start, if ``answers`` is the text of one answer.
        id: name of a column whose values go into the predictions.
        max_length: maximum number of tokens of a window with its question.
        stride: number of tokens of the context that a window shares with the one before it.
        max_question_length: tokens of a question; the rest is cut.
        **table: see :class:`TableDataModule` (train, dev, test, predict, dataset, ...).

    Raises:
        ValueError: when rows are read: an answer is not where it should begin, or ``stride`` and
            ``max_question_length`` leave no room. See also :class:`WindowedText`.

    Example::

        data = AnsweredQuestions(
            "FacebookAI/roberta-base", dataset="squad_v2", train="train", dev="validation"
        )
    """

    def __init__(
        self,
        backbone: str,
        *,
        question: str = "question",
        context: str = "context",
        answers: str = "answers",
        answer_start: str | None = None,
        id: str | None = None,
        max_length: int = 384,
        stride: int = 128,
        max_question_length: int = 64,
        **table: Any,
    ) -> None:
        super().__init__(backbone, max_length=max_length, stride=stride, **table)
        if max_question_length < 1:
            raise ValueError(f"max_question_length is {max_question_length}, expected at least 1")
        self.question = question
        self.context = context
        self.answers = answers
        self.answer_start = answer_start
        self.id = id
        self.max_question_length = max_question_length

    def columns(self, split: str) -> Mapping[str, Column]:
        """``question``, ``context``, the answers unless the split is predict, and ``id``."""
        columns = {
            "question": Column(self.question, Text()),
            CONTEXT: Column(self.context, Text()),
        }
        if self.id is not None:
            columns[ID] = Column(self.id, Text())
        if split == "predict":
            return columns
        if self.answer_start is None:
            return {**columns, ANSWERS: Column(self.answers, Answers())}
        text = Column(self.answers, Text(may_be_empty=True))
        return {**columns, "answer": text, "start": Column(self.answer_start, Start())}

    def check(self, table: Table, rows: Dataset, split: str) -> None:
        """Check that every answer is where it should begin."""
        if split == "predict":
            return
        for first in range(0, len(rows), 1000):
            batch = rows[first : first + 1000]
            answered = zip(batch[CONTEXT], _answers(batch), strict=True)
            for index, (context, answers) in enumerate(answered, start=first):
                try:
                    check_answers(context, answers)
                except ValueError as error:
                    place = f"{table.place(index)}, column {self.answers!r}"
                    raise ValueError(f"{place}: {error}") from None

    def most_around(self) -> int:
        """The number of special tokens of a pair, and ``max_question_length``."""
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        return special + self._separator[1] + len(self._end) + self.max_question_length

    @cached_property
    def _probe(self) -> BatchEncoding:
        return self.tokenizer(["a"], ["a"])

    @cached_property
    def _separator(self) -> tuple[str, int]:
        """What is put behind a question if no special token is, and its number of tokens."""
        sequences = self._probe.sequence_ids(0)
        apart = None in sequences[sequences.index(0) : sequences.index(1)]
        if apart:
            return "", 0
        alone, ended = (self.tokenizer(text)["input_ids"] for text in ("a", "a\n"))
        return "\n", len(ended) - len(alone)

    @cached_property
    def _end(self) -> list[int]:
        """What is put behind a context if the tokenizer has no token that can mean no answer.

        The last token of a context cannot: it is an answer too.
        """
        ids, last = self._probe["input_ids"][0], self._probe.sequence_ids(0)[-1]
        if last is None or self.tokenizer.cls_token_id in ids:
            return []
        eos = self.tokenizer.eos_token_id
        return [self.tokenizer.pad_token_id if eos is None else eos]

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        """The windows of each row; see :class:`WindowedText`."""
        questions = [question.strip() + self._separator[0] for question in rows["question"]]
        encoded = self.tokenizer(
            questions, rows[CONTEXT], return_offsets_mapping=True, verbose=False
        )
        answers = _answers(rows) if split != "predict" else [None] * len(questions)
        windows = []
        for row, (context, own) in enumerate(zip(rows[CONTEXT], answers, strict=True)):
            sequences = encoded.sequence_ids(row)
            tokens = {
                name: [
                    *values,
                    *(self._end if name == "input_ids" else values[-1:] * len(self._end)),
                ]
                for name, values in model_columns(encoded, row).items()
            }
            tokens, content, offsets = self._shortened(
                tokens, sequences, encoded["offset_mapping"][row]
            )
            characters = visible(context, offsets)
            target = None
            if own is not None:
                texts = [*zip(own["text"], own["answer_start"], strict=True)]
                target = answer_tokens(characters, Answer(*texts[0]) if texts else None)
            windows.append(self._windows(tokens, content, characters, target=target, split=split))
        columns = gather(windows, apart=split == "train")
        if split == "train":
            return columns
        columns[CONTEXT] = rows[CONTEXT]
        if split != "predict":
            columns[ANSWERS] = [own["text"] for own in answers if own is not None]
        return {**columns, ID: rows[ID]} if ID in rows else columns

    def _shortened(
        self, tokens: dict[str, list[int]], sequences: list[int | None], offsets: list[Span]
    ) -> tuple[dict[str, list[int]], Span, list[Span]]:
        """A row without the rest of a long question, its context, and the offsets of the latter."""
        context = [index for index, sequence in enumerate(sequences) if sequence == 1]
        content = (context[0], context[-1] + 1) if context else (len(sequences), len(sequences))
        asked = [index for index, sequence in enumerate(sequences) if sequence == 0]
        most = self.max_question_length + self._separator[1]
        rest = asked[self.max_question_length : len(asked) - self._separator[1]]
        if len(asked) > most:
            first, end = rest[0], rest[-1] + 1
            tokens = {name: [*v[:first], *v[end:]] for name, v in tokens.items()}
            content = (content[0] - len(rest), content[1] - len(rest))
        return tokens, content, [offsets[index] for index in context]

    def _windows(
        self,
        tokens: dict[str, list[int]],
        content: Span,
        characters: np.ndarray,
        *,
        target: Span | None,
        split: str,
    ) -> list[dict[str, Any]]:
        """The windows of a row.

        Args:
            tokens: inputs of the model of the whole row.
            content: first token and end of the context.
            characters: (tokens of the context, 2).
            target: first and last token of the answer, counted in the context.
            split: a training window has no characters, and a window to predict no target.
        """
        around = len(tokens["input_ids"]) - len(characters)
        room = self.room + self.most_around() - around  # a short question leaves more
        cuts = spans(len(characters), room, self.stride)
        owner = owners(cuts, len(characters))
        size = len(tokens["input_ids"])
        windows = []
        for number, span in enumerate(cuts):
            columns: dict[str, Any] = dict(tokens)
            if split != "train":
                there = characters[:, 0] < characters[:, 1]
                columns[STARTS] = _whole(
                    np.where(there & (owner == number), characters[:, 0], -1), content, size
                )
                columns[ENDS] = _whole(np.where(there, characters[:, 1], -1), content, size)
            window = cut(columns, content, span)
            null = self._null(window["input_ids"])
            if split != "predict":
                window |= _positions(target, span, content[0], null)
            windows.append(window if split == "train" else {**window, NULL: null})
        return windows

    def _null(self, ids: list[int]) -> int:
        """The token of a window that stands for no answer."""
        cls = self.tokenizer.cls_token_id
        return ids.index(cls) if cls in ids else len(ids) - 1


def _answers(rows: Mapping[str, list[Any]]) -> list[dict[str, list[Any]]]:
    if ANSWERS in rows:
        return rows[ANSWERS]
    return [one_answer(*pair) for pair in zip(rows["answer"], rows["start"], strict=True)]


def _whole(values: np.ndarray, content: Span, size: int) -> list[int]:
    """Values of the tokens of the context, with -1 for the tokens around it."""
    padded = np.full(size, -1)
    padded[slice(*content)] = values
    return padded.tolist()


def _positions(target: Span | None, span: Span, first: int, null: int) -> dict[str, Any]:
    """The first and the last token of the answer in a window; ``null`` if it is not all there."""
    if target is None or target[0] < span[0] or target[1] >= span[1]:
        return {START: null, END: null}
    shift = first - span[0]
    return {START: target[0] + shift, END: target[1] + shift}
