"""What the fuzzer needs to know of a loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutators import change_folder


class Target(ABC):
    """A loader, valid files for it, and what it may do with others.

    Attributes:
        name: of the loader.
        errors: types of the errors that its docstring names.
        seconds: limit for one input.
        mib: limit of memory for one input beyond what a valid one needs.
        detects: whether every change of content must be refused, as the format has digests.
    """

    name: str
    errors: tuple[type[Exception], ...] = (ValueError, OSError)
    seconds: float = 10.0
    mib: int = 256
    detects: bool = False

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write a valid input into an empty folder."""

    @abstractmethod
    def load(self, folder: Path) -> Any:
        """Load the input; the result is compared with ``==`` with that of the valid one."""

    def change(self, folder: Path, draw: Random) -> str:
        """Change the input; returns what was done."""
        return change_folder(folder, draw)

    def state(self) -> Any:
        """What a refusal must leave as it was."""
        return None

    def problem(self, folder: Path, result: Any) -> str | None:
        """What is wrong with a result that differs from that of the valid input."""
        return None
