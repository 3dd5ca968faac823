"""``lightning-pelt``: the console script and its nine commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lightning_pelt.cli import base, dashboard, export, plan, profiles, search
from lightning_pelt.cli.errors import DEBUG, debugging, one_line_errors
from lightning_pelt.cli.parser import CommandParser, SuggestingParser

# Commands that are not methods of a trainer: modules with a SUMMARY and a `main(args)`.
COMMANDS = {
    "plan": plan,
    "export": export,
    "dashboard": dashboard,
    "search": search,
    "profiles": profiles,
}


class CommandLine(base.PELTCLI):
    """``fit``, ``validate``, ``test`` and ``predict``, and the commands of ``COMMANDS``."""

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        self.parser.epilog = "`--debug` with any command prints the traceback of an error."
        self.parsers = {name: CommandParser(each.SUMMARY) for name, each in COMMANDS.items()}
        if isinstance(self.parser, SuggestingParser) and add_subcommands:
            for name, parser in self.parsers.items():
                self.parser.commands.add_subcommand(name, parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        name = self.config.subcommand
        if name in COMMANDS:
            COMMANDS[name].main(self.parsers[name].args)
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
