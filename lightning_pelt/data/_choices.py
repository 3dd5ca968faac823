"""Converts the choices of a row, and the answer among them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as shortened
from string import ascii_uppercase
from typing import Any, ClassVar, Literal, NamedTuple

from datasets import List, Value

from lightning_pelt.data._columns import Text, label_text
from lightning_pelt.utils.errors import unknown

AnswerKind = Literal["auto", "index", "letter", "text", "label"]
EXPECTED = (
    'a list of texts, {"text": [...], "label": [...]}, or a list of {"text": ..., "label": ...}'
)


class Named(NamedTuple):
    """The texts of the choices, and their labels in the file if they have some."""

    texts: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Choices:
    """The texts of the choices: from one cell with a list, or from a tuple of cells.

    Of several cells, empty ones at the end are choices that the row does not have.
    """

    feature: ClassVar[Any] = List(Value("string"))

    def __call__(self, value: Any) -> list[str]:
        return named_choices(value).texts


@dataclass(frozen=True)
class Answer:
    """The index of the right choice, from a tuple of the cells of the choices and of the answer.

    Args:
        kind: what the answer is; "auto" tries all and refuses an answer that fits two choices.
        first: the number of the first choice, if the answer is an index.
        listed: whether one cell holds all choices.
    """

    kind: AnswerKind = "auto"
    first: int = 0
    listed: bool = True
    feature: ClassVar[Any] = Value("int64")

    def __call__(self, value: Any) -> int:
        *cells, answer = value
        choices = named_choices(cells[0] if self.listed else tuple(cells))
        text = label_text(answer).strip()
        readings = self._readings(text, choices)
        found = sorted({index for _, index in readings})
        if len(found) == 1:
            return found[0]
        if not found:
            raise self._unknown(answer, text, choices)
        ways = " and ".join(f"as {kind} choice {index + 1}" for kind, index in readings)
        raise ValueError(f"the answer {answer!r} means {ways}: set answers={readings[0][0]!r}")

    def _readings(self, text: str, choices: Named) -> list[tuple[str, int]]:
        """What the answer may be, with the index of the choice that it then means."""
        number = int(text) - self.first if text.removeprefix("-").isdecimal() else -1
        letter = ascii_uppercase.find(text.upper()) if len(text) == 1 else -1
        texts = [choice.strip() for choice in choices.texts]
        found = {
            "label": choices.labels.index(text) if text in choices.labels else -1,
            "index": number,
            "letter": letter,
            "text": texts.index(text) if text in texts else -1,
        }
        if self.kind != "auto":
            found = {self.kind: found[self.kind]}
        elif choices.labels:  # the file says what its answers mean
            found = {"label": found["label"]}
        return [(kind, index) for kind, index in found.items() if 0 <= index < len(texts)]

    def _unknown(self, answer: Any, text: str, choices: Named) -> ValueError:
        if choices.labels and self.kind in ("auto", "label"):
            return unknown("label of a choice", answer, choices.labels)
        size = len(choices.texts)
        last = ascii_uppercase[min(size, 26) - 1]
        numbers = f"an index from {self.first} to {self.first + size - 1}"
        kinds = {"index": numbers, "letter": f"a letter from A to {last}", "text": "its text"}
        kinds = {self.kind: kinds[self.kind]} if self.kind in kinds else kinds
        remedy = ""
        if self.first == 0 and text == str(size):
            remedy = "; if the number of the first choice is 1, set first_answer=1"
        if text == "-1":
            remedy = "; rows without an answer can only be predicted: name their file in predict="
        expected = ", ".join(kinds.values())
        return ValueError(
            f"{shortened(answer)} is none of the {size} choices: expected {expected}{remedy}"
        )


def named_choices(value: Any) -> Named:
    """The choices of a row from one cell, or from a tuple of cells.

    Raises:
        ValueError: there are fewer than two, one is empty, or they are in no known form.
    """
    several = isinstance(value, tuple)
    texts, labels = (_without_trailing(value), []) if several else _of_cell(value)
    if len(texts) < 2:
        raise ValueError(f"expected at least 2 choices, and the row has {len(texts)}")
    return Named([_text(number, text) for number, text in enumerate(texts, 1)], labels)


def _of_cell(value: Any) -> tuple[Sequence[Any], list[str]]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(
                f"{shortened(value)} is a text, expected {EXPECTED}, in a text file as JSON; or "
                "name one column for each choice: choices=[...]"
            ) from None
    if isinstance(value, Sequence) and value and all(isinstance(v, Mapping) for v in value):
        value = {key: [item.get(key) for item in value] for key in value[0]}
    if isinstance(value, Mapping):
        texts, labels = value.get("text"), value.get("label")
        if not isinstance(texts, Sequence) or isinstance(texts, str):
            raise ValueError(f"{shortened(dict(value))} has no list of texts, expected {EXPECTED}")
        if labels is not None and len(labels) != len(texts):
            raise ValueError(f"there are {len(texts)} choices and {len(labels)} labels of choices")
        return texts, [] if labels is None else [label_text(label).strip() for label in labels]
    if not isinstance(value, Sequence):
        raise ValueError(f"{shortened(value)} is not a list, expected {EXPECTED}")
    return value, []


def _without_trailing(cells: tuple[Any, ...]) -> list[Any]:
    found = list(cells)
    while found and (found[-1] is None or not str(found[-1]).strip()):
        found.pop()
    return found


def _text(number: int, value: Any) -> str:
    try:
        return Text()(value)
    except ValueError as error:
        raise ValueError(f"choice {number}: {error}") from None
