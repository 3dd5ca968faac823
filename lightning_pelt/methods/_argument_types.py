"""Checks the types of a constructor's arguments that come from a file."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def refuse_wrong_types(cls: type, arguments: Mapping[str, Any]) -> None:
    """Compare arguments with the annotations of the constructor of ``cls``.

    Raises:
        ValueError: an argument has another type than its annotation.
    """
    hints = _hints(cls)
    for name, value in arguments.items():
        if name in hints and not fits(value, hints[name]):
            hint = hints[name]
            expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            raise ValueError(f"{cls.__name__} has {name}={value!r}, expected {expected}")


def fits(value: Any, hint: Any) -> bool:
    """Whether plain data has the type of an annotation. Unknown annotations fit everything.

    An int is a float. A bool is not an int, NaN is no number, and a string is not a sequence.

    >>> [fits(8, float), fits(True, int), fits("query", Sequence[str]), fits(["query"], list[str])]
    [True, False, False, True]
    """
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if kind is Literal:
        return any(value == one and type(value) is type(one) for one in inner)
    if hint is None:
        return value is None
    if hint is Any or not isinstance(kind, type):
        return True
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool) and value == value
    if issubclass(kind, Mapping):
        keys, items = inner or (Any, Any)
        return isinstance(value, Mapping) and all(
            fits(key, keys) and fits(item, items) for key, item in value.items()
        )
    if issubclass(kind, Sequence) and not issubclass(kind, (str, bytes)):
        return isinstance(value, Sequence) and not isinstance(value, str) and _each(value, inner)
    return isinstance(value, kind)


def _each(values: Sequence[Any], hints: tuple[Any, ...]) -> bool:
    """Whether the items fit ``Sequence[one]`` or ``tuple[one, ...]``, or ``tuple[one, two]``."""
    hints = tuple(hint for hint in hints if hint is not Ellipsis)
    if len(hints) <= 1:
        return all(fits(value, hint) for hint in hints for value in values)
    return len(values) == len(hints) and all(map(fits, values, hints))


def _hints(cls: Any) -> dict[str, Any]:
    try:
        return get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
    except (NameError, TypeError):  # an annotation that only a type checker can read
        return {}
