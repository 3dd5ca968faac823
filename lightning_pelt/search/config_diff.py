"""Differences between two configurations, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield every difference between two plain nested values: ``"tasks.0.rows: 100 -> 200"``."""
    for kind in (dict, list):
        if isinstance(old, kind) and isinstance(new, kind):
            before, after = _items(old), _items(new)
            for name in before | after:
                child = f"{path}.{name}" if path else str(name)
                yield from differences(before.get(name, _ABSENT), after.get(name, _ABSENT), child)
            return
    if old != new:
        yield f"{path}: {old!r} -> {new!r}"


def _items(value: dict[Any, Any] | list[Any]) -> dict[Any, Any]:
    return dict(enumerate(value)) if isinstance(value, list) else value


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


_ABSENT = _Absent()
