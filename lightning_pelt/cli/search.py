"""``lightning-pelt search``: lead a search of the design space, or work for one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning_pelt.cli.errors import one_line_errors
from lightning_pelt.cli.parser import SuggestingParser
from lightning_pelt.search import require_extra
from lightning_pelt.search import settings as search_settings

PROG = "lightning-pelt search"
USAGE = "%(prog)s --config RECIPE [--worker] [--OPTION VALUE ...]"


def main(args: Sequence[str]) -> None:
    """Run the command; print what the user can correct in a line and exit with status 2.

    Args:
        args: arguments of the command, without its name.
    """
    parser = SuggestingParser(prog=PROG, usage=USAGE, description=search_settings.SUMMARY)
    search_settings.add_arguments(parser)
    settings, worker = search_settings.from_namespace(parser, parser.parse_args(args))
    command = [sys.executable, "-m", "lightning_pelt", "search", *args]
    try:
        with one_line_errors(PROG):
            require_extra()
            from lightning_pelt.search import controller  # needs the extra `search`

            controller.run(settings, worker=worker, command=command)
    except KeyboardInterrupt:
        print(f"{PROG}: stopped; run the same command to continue", file=sys.stderr)
        raise SystemExit(130) from None
