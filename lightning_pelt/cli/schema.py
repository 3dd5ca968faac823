"""``lightning-pelt schema``: the JSON schema of recipes, with which editors complete and check."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from lightning_pelt.cli import base
from lightning_pelt.cli._recipe_schema import recipe_schema
from lightning_pelt.cli.errors import one_line_errors
from lightning_pelt.cli.overview import OTHERS
from lightning_pelt.cli.parser import SuggestingParser
from lightning_pelt.search import settings

PROG = "lightning-pelt schema"
COMMANDS = ("fit", "search")


def main(args: Sequence[str]) -> None:
    """Print the schema.

    Args:
        args: nothing, or the command whose recipes it describes.
    """
    parser = SuggestingParser(prog=PROG, description=OTHERS["schema"])
    text = "Command whose recipes it describes."
    parser.add_argument("command", nargs="?", choices=COMMANDS, default="fit", help=text)
    with one_line_errors(PROG):
        print(json.dumps(schema_of(parser.parse_args(args).command), indent=1))


def schema_of(command: str) -> dict[str, Any]:
    """The schema of the recipes of a command, as plain data.

    Args:
        command: ``fit`` or ``search``.
    """
    parser = parser_of("fit") if command == "fit" else _search_parser()
    return recipe_schema(parser, title=f"A recipe for lightning-pelt {command}")


def _search_parser() -> ArgumentParser:
    parser = SuggestingParser()
    settings.add_arguments(parser)
    return parser


def parser_of(command: str) -> ArgumentParser:
    """The parser of ``fit``, ``validate``, ``test`` or ``predict``."""
    try:
        base.main([command], _Parser)
    except _Made as made:
        return made.parsers[command]
    raise AssertionError("the command line was parsed")


class _Made(Exception):
    def __init__(self, parsers: Mapping[str, ArgumentParser]) -> None:
        super().__init__()
        self.parsers = parsers


class _Parser(base.PELTCLI):
    """Makes the parsers and parses nothing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        raise _Made(self._subcommand_parsers)
