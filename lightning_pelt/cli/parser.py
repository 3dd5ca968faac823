"""The parsers of the command line: misspelt names are answered with the nearest existing ones."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionSubCommands, ArgumentParser, DefaultHelpFormatter, Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lightning_pelt.cli.class_paths import MODE, update_paths
from lightning_pelt.cli.errors import debugging
from lightning_pelt.cli.recipe_file import RecipeError, check_yaml, read_recipe, read_yaml
from lightning_pelt.cli.shipped_recipes import with_files
from lightning_pelt.cli.suggestions import explain, unknown_option, without_class
from lightning_pelt.utils.urls import masked

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
        >>> from lightning_pelt import Plan
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
        try:
            given = with_files(sys.argv[1:] if args is None else args)
        except ValueError as error:
            self.error(str(error), error)
        if not given and self._subcommands_action is not None:
            self.print_help(sys.stderr)
            self.exit(2)
        if self._subcommands_action is None:
            self._check(given)
        return super().parse_args(update_paths(list(given)), *rest, **options)

    def _check(self, args: Sequence[str]) -> None:
        """Check what the parser explains badly: help without a class, and YAML, also in files."""
        if message := without_class(args, self._names()):
            self.error(message)
        for argument in args:
            value = argument.partition("=")[2] if argument.startswith("-") else argument
            if value.endswith((".yaml", ".yml")):
                self._read(value, read_yaml)
            try:
                check_yaml(value)
            except RecipeError as error:
                self.error(f"{argument.partition('=')[0][:40]}: {error}", error)
            except yaml.YAMLError:
                pass  # another text

    def _read(self, path: str, read: Callable[[Path], Any]) -> Any:
        """Read a file, if ``path`` is one and no URL; an error ends the process."""
        if not Path(path).is_file():
            return None
        try:
            return read(Path(path))
        except ValueError as error:
            self.error(str(error), error)

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

    def parse_path(self, path: Any, *rest: Any, **options: Any) -> Namespace:
        """Read a recipe, after a check of its text and of its names.

        Raises:
            SystemExit: it has a mistake. The message names the file; the exit status is 2.
        """
        recipe = self._read(str(path), read_recipe)
        if recipe is not None and self._subcommands_action is None:
            self._refuse_unknown(recipe, str(path))
        return super().parse_path(path, *rest, **options)

    def _refuse_unknown(self, recipe: Mapping[str, Any], path: str, group: str = "") -> None:
        options = self._names()
        for key, value in recipe.items():
            name = f"{group}{key}".removesuffix("+")
            inside = any(option.startswith(f"{name}.") for option in options)
            if inside and isinstance(value, Mapping) and f"{name}.help" not in options:
                self._refuse_unknown(value, path, f"{name}.")
            elif not inside and name not in options:
                self.error(f"{path}: {unknown_option(name, options)}")

    def _names(self) -> list[str]:
        return [name.lstrip("-") for name in self._option_string_actions]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the message becomes part of that of another parser
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        if debugging.get() and ex is not None:
            traceback.print_exception(ex)
        line = " ".join(explain(message, parser._names()).split())
        print(f"{self._prog_of(parser)}: {masked(line)}", file=sys.stderr)
        self.exit(2)

    def _prog_of(self, parser: ArgumentParser) -> str:
        """The name of the program with its command, even if the command's parser did not fail."""
        commands = parser._subcommands_action
        command = next(iter(getattr(parser, "args", ())), "")
        if commands is not None and command in commands.choices:
            parser = commands.choices[command]
        return parser.prog


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
