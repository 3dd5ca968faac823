"""``lightning-pelt``: the parser of its commands, and how it runs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lightning_pelt.cli import base
from lightning_pelt.cli.errors import DEBUG, debugging, one_line_errors
from lightning_pelt.cli.overview import EPILOG, OTHERS
from lightning_pelt.cli.parser import CommandParser, SuggestingParser


class CommandLine(base.PELTCLI):
    """``fit``, ``validate``, ``test`` and ``predict``, and the commands of ``OTHERS``."""

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        self.parser.epilog = EPILOG
        self.parsers = {name: CommandParser(summary) for name, summary in OTHERS.items()}
        if isinstance(self.parser, SuggestingParser) and add_subcommands:
            for name, parser in self.parsers.items():
                self.parser.commands.add_subcommand(name, parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        name = self.config.subcommand
        if name in OTHERS:
            import_module(f"lightning_pelt.cli.{name}").main(self.parsers[name].args)
            parser.exit()


def script(kind: type[base.PELTCLI] = CommandLine) -> None:
    """Run the command that the command line names.

    A mistake is printed in one line, and the exit status is 2. The option ``--debug`` prints the
    traceback too. The console script passes the return value to ``sys.exit``: it is None.

    Args:
        kind: a subclass with more options or commands, for the script of another package.
    """
    args = [argument for argument in sys.argv[1:] if argument != DEBUG]
    token = debugging.set(DEBUG in sys.argv)
    try:
        with one_line_errors(_name(kind, args)):
            base.main(args, kind)
    finally:
        debugging.reset(token)


def _name(kind: type[base.PELTCLI], args: Sequence[str]) -> str:
    """The name of the program, and of its command if that comes first."""
    command = args[:1] if args and not args[0].startswith("-") else []
    return " ".join([kind.prog, *command])
