"""Answers in a context: convert the values of their columns, and find their tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any, ClassVar, NamedTuple

import numpy as np
from datasets import List, Value

from lightning_pelt.data._columns import Text
from lightning_pelt.data._windows import Span

EXPECTED = (
    'expected {"text": [...], "answer_start": [...]} as in SQuAD, with empty lists for a question '
    "without an answer"
)


class Answer(NamedTuple):
    """A text of the context, and the number of its first character."""

    text: str
    start: int


@dataclass(frozen=True)
class Answers:
    """The answers of a question in the forms of SQuAD, also as JSON.

    They are a dictionary of lists, or a list of dictionaries. A converted value is the dictionary.
    """

    feature: ClassVar[Any] = {"text": List(Value("string")), "answer_start": List(Value("int64"))}

    def __call__(self, value: Any) -> dict[str, list[Any]]:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                raise ValueError(
                    f"{shortened(value)} is a text, {EXPECTED}; if a row has one answer, name "
                    "answer_start= too"
                ) from None
        if isinstance(value, Mapping):
            value = _rows(value)
        if not isinstance(value, Sequence | np.ndarray):
            raise ValueError(f"{shortened(value)} is a {type(value).__name__}, {EXPECTED}")
        answers = [_answer(item) for item in value]
        return {
            "text": [answer.text for answer in answers],
            "answer_start": [answer.start for answer in answers],
        }


@dataclass(frozen=True)
class Start:
    """The number of the first character of an answer; -1 or a missing value if there is none."""

    feature: ClassVar[Any] = Value("int64")

    def __call__(self, value: Any) -> int:
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            return -1
        return _whole(value)


def _rows(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = ("text", "answer_start")
    texts, starts = (value.get(name) for name in names)
    if texts is None or starts is None:
        missing = names[0] if texts is None else names[1]
        raise ValueError(f"the answers have no {missing!r}, {EXPECTED}")
    if isinstance(texts, str):
        texts, starts = [texts], [starts]
    if len(texts) != len(starts):
        raise ValueError(f"the answers have {len(texts)} texts and {len(starts)} starts")
    return [dict(zip(names, pair, strict=True)) for pair in zip(texts, starts, strict=True)]


def _answer(item: Any) -> Answer:
    if not isinstance(item, Mapping) or not {"text", "answer_start"} <= item.keys():
        raise ValueError(f"the answer {shortened(item)} has no text and answer_start, {EXPECTED}")
    return Answer(Text()(item["text"]), _whole(item["answer_start"]))


def _whole(value: Any) -> int:
    try:
        number = int(value)
        if isinstance(value, bool) or number != float(value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{shortened(value)} is not the number of a character") from None
    return number


def one_answer(text: str, start: int) -> dict[str, list[Any]]:
    """The answers of a row with a column for the text and one for its start.

    A blank text, or the start -1, is no answer.
    """
    if not text.strip() or start == -1:
        return {"text": [], "answer_start": []}
    return {"text": [text], "answer_start": [start]}


def check_answers(context: str, answers: Mapping[str, Sequence[Any]]) -> None:
    """Check that answers are in the context where they are said to begin.

    Raises:
        ValueError: one is not; the message has what is there, and where the answer is.
    """
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        there = context[start : start + len(text)] if start >= 0 else ""
        if there == text:
            continue
        places = [i for i in range(len(context)) if context.startswith(text, i)]
        if not places:
            remedy = "the answer is not in the context"
        else:
            nearest = min(places, key=lambda place: abs(place - start))
            remedy = f"the answer begins at character {nearest}"
        raise ValueError(
            f"the answer {shortened(text)} should begin at character {start} of the context "
            f"(counted from 0), and there is {shortened(there)}: {remedy}"
        )


def visible(context: str, offsets: Sequence[Span]) -> np.ndarray:
    """The characters of tokens without white space around them; (tokens, 2) int64.

    Args:
        context: the text.
        offsets: the first character and the end of each token; some tokenizers count the space
            before a word.
    """
    found = np.zeros((len(offsets), 2), dtype=np.int64)
    for token, (start, end) in enumerate(offsets):
        text = context[start:end]
        found[token] = start + len(text) - len(text.lstrip()), start + len(text.rstrip())
    return found


def answer_tokens(characters: np.ndarray, answer: Answer | None) -> Span | None:
    """The first and the last token with a character of an answer; None without one.

    Args:
        characters: (tokens, 2), as :func:`visible` gives them.
        answer: its text is not blank.
    """
    if answer is None:
        return None
    start, end = answer.start, answer.start + len(answer.text)
    touches = (characters[:, 0] < end) & (characters[:, 1] > start)
    inside = np.flatnonzero(touches & (characters[:, 0] < characters[:, 1]))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None
