"""``lightning-pelt completion``: completion of commands, options and names in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lightning_pelt.cli import methods, schema, shipped_recipes
from lightning_pelt.cli.errors import one_line_errors
from lightning_pelt.cli.overview import OTHERS, TRAINER
from lightning_pelt.cli.overview import PROG as ROOT
from lightning_pelt.cli.parser import SuggestingParser

PROG = f"{ROOT} completion"
SHELLS = ("bash", "zsh", "fish", "tcsh")


def main(args: Sequence[str]) -> None:
    """Print the script of a shell.

    Args:
        args: the name of the shell.
    """
    parser = SuggestingParser(prog=PROG, description=OTHERS["completion"])
    parser.add_argument("shell", choices=SHELLS)
    with one_line_errors(PROG):
        print(script(parser.parse_args(args).shell))


def script(shell: str) -> str:
    """The completion script of a shell.

    Raises:
        ValueError: shtab is not installed, or does not know the shell.
    """
    try:
        import shtab
    except ImportError as error:
        raise ValueError("completion needs shtab: pip install shtab") from error
    if shell not in shtab.SUPPORTED_SHELLS:
        raise ValueError(
            f"shtab {shtab.__version__} has no script for {shell}: pip install -U shtab"
        )
    return str(shtab.complete(outline(), shell))


def outline() -> argparse.ArgumentParser:
    """The command line without types: commands, their options, and the names they take.

    jsonargparse's own script lists the arguments of every subclass of every class, which takes
    minutes.
    """
    parser = argparse.ArgumentParser(ROOT)
    commands = parser.add_subparsers()
    for name, text in {**TRAINER, **OTHERS}.items():
        command = commands.add_parser(name, help=text, add_help=False)
        if name in TRAINER:
            for option in schema.parser_of(name)._option_string_actions:
                if option.startswith("--"):
                    command.add_argument(option)
    commands.choices["recipes"].add_argument("recipe", choices=[*shipped_recipes.recipes()])
    commands.choices["methods"].add_argument("method", choices=methods.names())
    commands.choices["completion"].add_argument("shell", choices=SHELLS)
    commands.choices["schema"].add_argument("described", choices=schema.COMMANDS)
    return parser
