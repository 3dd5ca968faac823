"""The parsers of the command line: misspelt names are answered with the nearest existing ones."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pydoc import locate
from typing import Any, NoReturn

from jsonargparse import ActionSubCommands, ArgumentParser, DefaultHelpFormatter, Namespace
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from lightning_pelt.cli.class_paths import MODE, update_paths
from lightning_pelt.data import TextDataModule
from lightning_pelt.methods.base import Method
from lightning_pelt.plans import Plan
from lightning_pelt.tasks import Task

# How jsonargparse refuses an unknown option, argument of a class, class, and command.
OPTION = re.compile(r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'")
ARGUMENT = re.compile(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted")
CLASS = re.compile(r"Expected a dot import path string: (\w+)")
COMMAND = re.compile(r"invalid choice: '(\w+)' \(choose from (.*)\)")

# How it refuses an unknown key of a recipe, and an unknown argument of a class that a callable
# makes: each is rewritten to match OPTION or ARGUMENT.
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


# Titles of the options in `--help`; the trainer's come last.
TITLES = {
    "model": "Model, plan, task and optimizer",
    "data": "Data",
    "predictions": "Predictions",
    "trainer": "Lightning Trainer options",
}


class Commands(ActionSubCommands):
    """Subcommands that the parent's help lists with the descriptions of their parsers."""

    def add_subcommand(self, name: str, parser: ArgumentParser, **options: Any) -> ArgumentParser:
        super().add_subcommand(name, parser, **{**options, "help": parser.description})
        parser.prog = f"{self.parent_parser.prog} {name}"
        return parser


class HelpFormatter(DefaultHelpFormatter):
    """Lists the subcommands without a second heading below the title of their group."""

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, Commands):
            return "".join(map(self._format_action, action._get_subactions()))
        return super()._format_action(action)


class SuggestingParser(LightningArgumentParser):
    """Lightning's parser, with suggestions for misspelt names and the trainer's options last.

    Class paths of earlier versions of this package resolve to the public names of today.

    Args:
        options: see :class:`jsonargparse.ArgumentParser`.

    Example:
        >>> parser = SuggestingParser(exit_on_error=False)
        >>> _ = parser.add_argument("--plan", type=Plan)
        >>> parser.parse_args(["--plan=lightning_pelt.plan.UniPELT"]).plan.class_path
        'lightning_pelt.UniPELT'
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        defaults = {"parser_mode": MODE, "formatter_class": HelpFormatter}
        super().__init__(*args, **{**defaults, **options})

    def add_subcommands(
        self, required: bool = True, dest: str = "subcommand", **options: Any
    ) -> ActionSubCommands:
        options = {
            "title": "commands",
            "description": f"`{self.prog} COMMAND --help` lists the options of a command.",
            "metavar": "COMMAND",
            "action": Commands,
            **options,
        }
        self.commands = super().add_subcommands(required, dest, **options)
        return self.commands

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *rest: Any, **options: Any
    ) -> Namespace:
        given = sys.argv[1:] if args is None else args
        if not given and self._subcommands_action is not None:
            self.print_help(sys.stderr)
            self.exit(2)
        return super().parse_args(update_paths(list(given)), *rest, **options)

    def parse_object(self, obj: Any, *rest: Any, **options: Any) -> Namespace:
        return super().parse_object(update_paths(obj), *rest, **options)

    def format_help(self, *args: Any) -> str:
        groups = self.groups or {}
        for name, title in TITLES.items():
            if name in groups:
                groups[name].title = title
        # Stable: the other groups stay in their order.
        trainer = groups.get("trainer")
        self._action_groups = sorted(self._action_groups, key=lambda group: group is trainer)
        return super().format_help(*args)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [name.lstrip("-") for name in parser._option_string_actions]
        meant = dict.fromkeys(_meant(message, options))
        if meant and self.exit_on_error:  # a nested parser's message becomes part of its parent's
            message += f"\ndid you mean {' or '.join(map(repr, meant))}?"
        super().error(message, ex)


class CommandParser(SuggestingParser):
    """A subcommand that keeps its arguments for another parser, in ``args``.

    The parent lists it in its help without importing what the command needs.

    Args:
        description: what the command does, in a sentence.
    """

    def __init__(self, description: str) -> None:
        super().__init__(description=description, add_help=False)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *rest: Any, **options: Any
    ) -> Namespace:
        self.args = list(args or ())
        return Namespace()


class RecipeParser(SuggestingParser):
    """Rewords the messages on a recipe's unknown keys, so that they get suggestions."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if self.exit_on_error:  # a nested parser's message becomes part of its parent's
            for pattern, words in UNACCEPTED:
                message = pattern.sub(words, message)
        super().error(message, ex)


def _meant(message: str, options: list[str]) -> Iterator[str]:
    """The nearest existing names to the unknown ones in ``message``."""
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
    """The arguments of a class and of its parents, to which a child passes the rest."""
    signatures = [
        inspect.signature(parent.__init__)
        for parent in getattr(cls, "__mro__", ())
        if "__init__" in vars(parent) and parent is not object
    ]
    return [name for signature in signatures for name in signature.parameters if name != "self"]


def _classes() -> list[str]:
    """The names of the classes that a recipe may name."""
    names: list[str] = []
    classes: list[type] = [Plan, Method, Task, TextDataModule, Callback, Logger]
    while classes:
        names += [cls.__name__ for cls in classes]
        children: list[list[type]] = [cls.__subclasses__() for cls in classes]
        classes = [child for siblings in children for child in siblings]
    return names
