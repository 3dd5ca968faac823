"""``lightning-pelt``: the console script and its seven commands."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lightning_pelt.cli import base, plan, profiles, search
from lightning_pelt.cli.parser import CommandParser, SuggestingParser

# Commands that are not methods of a trainer: modules with a SUMMARY and a `main(args)`.
COMMANDS = {"plan": plan, "search": search, "profiles": profiles}


class CommandLine(base.PELTCLI):
    """``fit``, ``validate``, ``test`` and ``predict``, and the commands of ``COMMANDS``."""

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
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


def script() -> None:
    """Run the command that the command line names.

    The console script passes the return value to ``sys.exit``: it is None.
    """
    base.main(kind=CommandLine)
