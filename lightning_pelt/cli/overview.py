"""The commands of ``lightning-pelt``, and the help that lists them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from lightning_pelt import __version__

PROG = "lightning-pelt"
DESCRIPTION = "Gated parameter-efficient tuning of Hugging Face transformers."
EPILOG = "`--debug` with any command prints the traceback of an error."
# Commands that are methods of a trainer.
TRAINER = {
    "fit": "Train the plan of a recipe.",
    "validate": "Score a checkpoint on the validation rows.",
    "test": "Score a checkpoint on the test rows.",
    "predict": "Write a checkpoint's predictions for new rows.",
}
# The others: modules of this folder with a `main(args)`, which are imported when they run.
OTHERS = {
    "recipes": "List the recipes of this package, or print one.",
    "methods": "List the methods, or show the options of one.",
    "schema": "Print the JSON schema of recipes, for editors.",
    "completion": "Print the completion script of a shell.",
    "plan": "Show the size of a recipe's plan, block by block.",
    "report": "Write an HTML report of a run, or of two side by side.",
    "export": "Write a checkpoint in another library's format.",
    "dashboard": "Save charts of gates, rates and counts in W&B.",
    "search": "Find a plan for a given number of parameters.",
    "profiles": "Train, store and serve many profiles on one model.",
}
OPTIONS = {
    ("-h", "--help"): ("Show this help message and exit.", {"action": "store_true"}),
    ("--version",): ("Print version and exit.", {"action": "store_true"}),
    ("-c", "--config"): (
        "Path to a configuration file in json or yaml format.",
        {"metavar": "CONFIG"},
    ),
    ("--print_config",): (
        "Print the configuration after applying all other arguments and exit. The optional flags "
        "customizes the output and are one or more keywords separated by comma. The supported "
        "flags are: skip_default, skip_unset.",
        {"metavar": "\b[=flags]"},
    ),
}


def show(args: Sequence[str]) -> int | None:
    """Answer a command line that asks for nothing but the overview or the version.

    The parsers of the commands are not needed for that, nor what they import.

    Args:
        args: the arguments of the process.

    Returns:
        The exit status; None if the arguments ask for something else.
    """
    if list(args) == ["--version"]:
        print(PROG, __version__)
        return 0
    if not args:
        print(overview(), file=sys.stderr, end="")
        return 2
    if list(args) in (["-h"], ["--help"]):
        print(overview(), end="")
        return 0
    return None


def overview() -> str:
    """The help that lists the commands: that of the parser of :mod:`.main`, without its parser."""
    parser = argparse.ArgumentParser(
        PROG,
        usage="%(prog)s [-c CONFIG] COMMAND ...",
        description=DESCRIPTION,
        epilog=EPILOG,
        add_help=False,
        formatter_class=_Formatter,
    )
    for names, (text, options) in OPTIONS.items():
        rest: dict[str, Any] = options
        parser.add_argument(*names, help=text, **rest)
    what = f"`{PROG} COMMAND --help` lists the options of a command."
    commands = parser.add_subparsers(title="commands", description=what, metavar="COMMAND")
    for name, summary in {**TRAINER, **OTHERS}.items():
        commands.add_parser(name, help=summary.replace("%", "%%"))
    return parser.format_help()


class _Formatter(argparse.HelpFormatter):
    """Lists the commands without a second heading below the title of their group."""

    def _format_action(self, action: argparse.Action) -> str:
        if action.metavar == "COMMAND":
            return "".join(map(self._format_action, action._get_subactions()))  # type: ignore[attr-defined]
        return super()._format_action(action)
