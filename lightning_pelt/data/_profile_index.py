"""The index of a profile from the value of its column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lightning_pelt.data._columns import Label
from lightning_pelt.utils.errors import unknown

DROPPED = -1  # index of a profile whose rows are dropped


@dataclass(frozen=True)
class ProfileIndex(Label):
    """The index of a profile from its name, by one dictionary lookup.

    Args:
        labels: names of the profiles.
        dropped: names whose index is ``DROPPED``.
        class_names: names of the classes in a ``ClassLabel`` column of the hub.
        source: name of the source of the training rows, for errors.
    """

    dropped: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    source: str = ""

    @cached_property
    def _indices(self) -> dict[str, int]:
        known = {name: i for i, name in enumerate(self.labels)}
        return {**known, **dict.fromkeys(self.dropped, DROPPED)}

    def __call__(self, value: Any) -> int:
        name = profile_name(value, self.class_names)
        if not name:
            raise ValueError("the profile is missing")
        if not isinstance(value, str | int):
            raise ValueError(f"the profile {value!r} is neither a string nor an integer")
        if name not in self._indices:
            remedy = f"{self.source} has no rows of it: add some, or drop these with unseen='drop'"
            raise unknown("profile", name, self.labels, remedy=remedy)
        return self._indices[name]


def profile_name(value: Any, class_names: Sequence[str]) -> str:
    """The name of a profile from a value of its column; empty if the value is missing."""
    if value is None or (class_names and value < 0):
        return ""
    name = class_names[value] if class_names else str(value)
    return name if name.strip() else ""
