"""The command line's parser: like Lightning's, but a misspelt name is answered with the nearest."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pydoc import locate
from typing import Any, NoReturn

from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from lightning_pelt.data import TextDataModule
from lightning_pelt.method import Method
from lightning_pelt.plan import Plan
from lightning_pelt.tasks import Task

# What jsonargparse says of a name that it does not know.
OPTION = re.compile(r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'")
ARGUMENT = re.compile(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted")
CLASS = re.compile(r"Expected a dot import path string: (\w+)")
COMMAND = re.compile(r"invalid choice: '(\w+)' \(choose from (.*)\)")

# How jsonargparse refuses a name at the top of a recipe, and one of a class that a callable makes.
UNACCEPTED = (
    (
        re.compile(r"^Option '([\w.]+)' is not"),
        r"the recipe does not accept option '\1': it is not",
    ),
    (
        re.compile(r"Option '([\w.]+)' is not accepted.(.*Namespace\(class_path='([\w.]+)')"),
        r"class_path '\3': Option '\1' is not accepted.\2",
    ),
)


class SuggestingParser(LightningArgumentParser):
    """Adds ``did you mean`` to what is wrong with a command line or a recipe."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [name.lstrip("-") for name in parser._option_string_actions]
        meant = dict.fromkeys(_meant(message, options))
        if meant and self.exit_on_error:  # not inside of another parser's message
            message += f"\ndid you mean {' or '.join(map(repr, meant))}?"
        super().error(message, ex)


class RecipeParser(SuggestingParser):
    """Says what is not accepted in the words to which names are suggested."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        for pattern, words in UNACCEPTED if self.exit_on_error else ():  # not of a part of one
            message = pattern.sub(words, message)
        super().error(message, ex)


def _meant(message: str, options: list[str]) -> Iterator[str]:
    """The nearest existing names to those that ``message`` complains about."""
    for found in OPTION.finditer(message):
        yield from _nearest(found[1] or found[2], options)
    for found in ARGUMENT.finditer(message):
        yield from _nearest(found[2], _arguments(locate(found[1])))
    for found in CLASS.finditer(message):
        yield from _nearest(found[1], _classes())
    for found in COMMAND.finditer(message):
        yield from _nearest(found[1], re.findall(r"\w+", found[2]))


def _nearest(name: str, names: list[str]) -> list[str]:
    folded = {option.lower(): option for option in names}
    nearest = get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return [folded[option] for option in nearest]


def _arguments(cls: Any) -> list[str]:
    """Arguments of a class; a child hands those that it does not know to its parents."""
    signatures = [
        inspect.signature(parent.__init__)
        for parent in getattr(cls, "__mro__", ())
        if "__init__" in vars(parent) and parent is not object
    ]
    return [name for signature in signatures for name in signature.parameters if name != "self"]


def _classes() -> list[str]:
    """Names of the classes that a recipe may ask for."""
    names: list[str] = []
    classes: list[type] = [Plan, Method, Task, TextDataModule, Callback, Logger]
    while classes:
        names += [cls.__name__ for cls in classes]
        children: list[list[type]] = [cls.__subclasses__() for cls in classes]
        classes = [child for siblings in children for child in siblings]
    return names
