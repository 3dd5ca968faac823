"""``lightning-pelt profiles``: many users on one model, from training to serving."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_pelt.parser import SuggestingParser
from lightning_pelt.profiles._records import UnknownProfile

PROG = "lightning-pelt profiles"
SUMMARY = "Many users on one model, each a few hundred bytes."
COMMANDS = {
    "train": "Fit a recipe whose data has profiles, and keep them in a store.",
    "add": "Train one profile more on a trained model, of which nothing else changes.",
    "list": "Show what a store has.",
    "evaluate": "Score stored profiles, each and all.",
    "export": "Write a store as safetensors shards.",
    "import": "Bring exported shards into a store.",
    "predict": "Answer the rows of a file.",
    "serve": "Answer requests over HTTP.",
}
RECIPES = ("train", "add", "evaluate")  # these take all options of `fit` besides their own
MISTAKES = (ValueError, OSError, ModuleNotFoundError, UnknownProfile, MisconfigurationException)


def main(args: Sequence[str]) -> None:
    """Run one command; what the user can mend is said in a line, with the exit status 2.

    Args:
        args: the command and its options.
    """
    try:
        if args and args[0] in RECIPES:
            # Lightning warns of arguments that sys.argv has too, which it needs to start others.
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            import_module("lightning_pelt.profiles_cli.recipes").run(args[0], list(args[1:]))
        else:
            _run(args)
    except MISTAKES as error:
        print(f"{' '.join([PROG, *args[:1]])}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error


def _run(args: Sequence[str]) -> None:
    parser = SuggestingParser(prog=PROG, description=SUMMARY)
    commands = parser.add_subcommands(metavar="COMMAND")
    for name, help in COMMANDS.items():
        own = SuggestingParser(description=help)
        if name == next(iter(args), None):
            own.add_function_arguments(_function(name))
        commands.add_subcommand(name, own, help=help)
    given = parser.parse_args(list(args))
    _function(given.subcommand)(**given[given.subcommand].as_dict())


def _function(name: str) -> Callable[..., None]:
    """What a command calls; imported for that command alone, since each needs another extra."""
    if name == "serve":
        return import_module("lightning_pelt.serving.http").serve
    return import_module("lightning_pelt.profiles_cli.stores").FUNCTIONS[name]
