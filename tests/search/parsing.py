"""Parses the arguments of ``lightning-pelt search`` without running it."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_pelt.cli.parser import SuggestingParser
from lightning_pelt.search.settings import Request, add_arguments, from_namespace


def parse(args: Sequence[str]) -> Request:
    parser = SuggestingParser(prog="lightning-pelt search")
    add_arguments(parser)
    return from_namespace(parser, parser.parse_args([*args]))
