"""The recipes of this package by name: ``pelt://quickstart``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import lightning_pelt
from lightning_pelt.utils.errors import unknown

SCHEME = "pelt://"
NAMED = re.compile(rf"^((?:-c|--config)=)?{SCHEME}(.*)$")


@cache
def recipes() -> dict[str, Path]:
    """The files of the recipes by name, in the order of their names."""
    folder = Path(lightning_pelt.__file__).with_name("recipes")
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def recipe(name: str) -> Path:
    """The file of a recipe.

    Raises:
        ValueError: there is none of that name; the message has the nearest one.
    """
    found = recipes().get(name.removesuffix(".yaml"))
    if found is None:
        raise unknown("recipe of lightning_pelt", name, recipes())
    return found


def with_files(args: Sequence[Any]) -> list[Any]:
    """``args`` with the files in the place of ``pelt://NAME``.

    Raises:
        ValueError: as :func:`recipe`.

    Example:
        >>> with_files(["--config=pelt://lora"])[0].endswith("lora.yaml")
        True
    """
    replaced = []
    for argument in args:
        match = NAMED.match(argument) if isinstance(argument, str) else None
        replaced.append(f"{match[1] or ''}{recipe(match[2])}" if match else argument)
    return replaced


def summary(file: Path) -> str:
    """The first sentence of the comment that begins a recipe."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or text.startswith("lightning-pelt"):
            break
        lines.append(text)
    return re.split(r"(?<=\.)\s", " ".join(lines))[0]
