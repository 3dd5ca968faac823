"""Convert the values of a column: texts, numbers, labels."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from reprlib import repr as shortened
from typing import Any, ClassVar, NamedTuple, Protocol

from datasets import Value

from lightning_pelt.utils.errors import unknown

MISSING = ("nan", "<na>")  # how programs write a missing value as a string
# Beginning of a printed list of messages, with the quotation marks of Python or of JSON.
MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|content|from|value)["']\s*:""")
RENDER = "render it with the tokenizer's apply_chat_template(..., tokenize=False)"


class Kind(Protocol):
    """How the values of a column are converted.

    A kind is a frozen dataclass of plain data, so that converted rows can be cached.

    Attributes:
        feature: the type of a converted value, as datasets stores it.
    """

    feature: ClassVar[Any]

    def __call__(self, value: Any) -> Any:
        """The converted value.

        Raises:
            ValueError: it cannot be converted; the message says what was expected.
        """


class Column(NamedTuple):
    """A column of a file, and how to convert its values.

    Attributes:
        name: of the column.
        kind: converts a value; with ``more`` columns, a tuple of the values of all of them.
        more: names of further columns that the converted value depends on.
    """

    name: str
    kind: Kind
    more: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all its columns."""
        return (self.name, *self.more)

    def cells(self, rows: Mapping[str, Sequence[Any]]) -> Iterable[Any]:
        """What is converted, of each row."""
        return (
            zip(*(rows[name] for name in self.names), strict=True) if self.more else rows[self.name]
        )


@dataclass(frozen=True)
class Text:
    """A text, or a number as it is written. Nothing else is turned into a text.

    Args:
        may_be_empty: whether a text may be blank.
        spoken: whether messages of a chat that are printed as a text are refused.
    """

    may_be_empty: bool = False
    spoken: bool = False
    feature: ClassVar[Any] = Value("string")

    def __call__(self, value: Any) -> str:
        text = "" if value is None else value
        if not isinstance(text, str):
            text = str(_number(text, "a text"))
        if not text.isascii():
            check_unicode(text)
        if not self.may_be_empty and not text.strip():
            raise ValueError("the text is empty")
        if self.spoken and MESSAGES.match(text):
            raise ValueError(f"the text is a printed list of messages: {RENDER}")
        return text


@dataclass(frozen=True)
class Number:
    """A finite number."""

    feature: ClassVar[Any] = Value("float32")

    def __call__(self, value: Any) -> float:
        try:
            number = nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = nan
        if not isfinite(number):
            raise ValueError(f"{shortened(value)} is not a number")
        return number


@dataclass(frozen=True)
class Label:
    """The index of a label, from its name or, if ``indexed``, also from the index itself."""

    labels: tuple[str, ...]
    indexed: bool = False
    feature: ClassVar[Any] = Value("int64")

    def __call__(self, value: Any) -> int:
        text = label_text(value)
        for name in (text, str(value)):
            if name in self.labels:
                return self.labels.index(name)
        if self.indexed and text.isdecimal() and int(text) < len(self.labels):
            return int(text)
        raise unknown("label", value, self.labels)


def label_text(value: Any) -> str:
    """The name of a label from a value: 1, 1.0 and "1" are one label.

    Raises:
        ValueError: the value is missing, or is neither a string nor a number.
    """
    if value is None or value != value:
        raise ValueError("the label is missing")
    if isinstance(value, bool):
        return str(value)
    text = value if isinstance(value, str) else _whole(_number(value, "a label"))
    if not text.strip():
        raise ValueError("the label is missing")
    if not text.isascii():
        check_unicode(text)
    return text


def collected_label(value: Any) -> str:
    """:func:`label_text` for rows whose classes are collected, so that NaN does not become one.

    Raises:
        ValueError: as there, or the label is how a program writes a missing value.
    """
    text = label_text(value)
    if text.strip().lower() in MISSING:
        raise ValueError(
            f"the label is {text!r}, a missing value: label the row or remove it; if it is a "
            "class, name all classes with labels=[...]"
        )
    return text


def check_distinct(names: Sequence[str]) -> None:
    """Check that no two labels look like one that is written in two ways.

    Raises:
        ValueError: two labels differ only in white space or case, or are the same number.
    """
    seen: dict[object, str] = {}
    for name in names:
        look = _look(name)
        if look in seen:
            raise ValueError(
                f"the labels {seen[look]!r} and {name!r} look like one class: write them in one "
                "way, or name all classes with labels=[...]"
            )
        seen[look] = name


def is_printed(text: str) -> bool:
    """Whether a text is a list of strings, or a dictionary, as Python prints it.

    JSON is not: it may be what a model learns to write.
    """
    if text[:1] not in ("[", "{") or "'" not in text:
        return False
    try:
        value = literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(value, dict) or any(isinstance(item, (str, dict)) for item in value)


def refuse_printed(text: str) -> None:
    """Raise the error for such a text."""
    raise ValueError(
        f"the text is a list or a dictionary as Python prints it, {shortened(text)}: write its "
        "words, or one of its values, as a text"
    )


def _look(name: str) -> object:
    try:
        return float(name)
    except ValueError:
        return name.strip().casefold()


def _whole(number: float) -> str:
    """A number as a string, without the fraction if that is 0."""
    return str(int(number)) if number == int(number) else str(number)


def _number(value: Any, expected: str) -> float:
    """Check that a value is a finite number.

    Raises:
        ValueError: it is not; the message has the remedy for lists and messages.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{value} is a missing value or not finite, expected {expected}")
        return value
    messages = value if isinstance(value, list) else [value]
    if messages and all(isinstance(m, dict) and {"role", "from"} & m.keys() for m in messages):
        remedy = f"it holds messages: {RENDER}"
    elif isinstance(value, list):
        remedy = "a row has one" if expected == "a label" else "join its words to a string"
    else:
        remedy = "convert it, or name another column"
    kind = "a dictionary" if isinstance(value, dict) else f"a {type(value).__name__}"
    raise ValueError(f"{shortened(value)} is {kind}, expected {expected}: {remedy}")


def check_unicode(text: str) -> None:
    """Check that UTF-8 can hold a text.

    Raises:
        ValueError: it contains half of a surrogate pair, as JSON files may.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text[:30]!a} contains half of a surrogate pair") from None
