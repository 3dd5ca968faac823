"""``lightning-pelt profiles``: many profiles on one model, from training to serving."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_pelt.cli.errors import one_line_errors
from lightning_pelt.cli.overview import OTHERS
from lightning_pelt.cli.parser import CommandParser, SuggestingParser
from lightning_pelt.cli.profiles import recipes

PROG = "lightning-pelt profiles"
# Commands that take no recipe.
FUNCTIONS = {
    "list": "List the profiles of a store.",
    "delete": "Delete profiles, so that nothing of them is left in a store.",
    "export": "Write the profiles of a store as safetensors shards.",
    "import": "Write exported shards to a store.",
    "predict": "Write the predictions for the rows of a file.",
    "serve": "Answer requests over HTTP.",
}
ORDER = (
    *("train", "learn-instant", "add", "list", "delete", "evaluate"),
    *("export", "import", "predict", "serve"),
)
COMMANDS = {
    name: recipes.COMMANDS[name].summary if name in recipes.COMMANDS else FUNCTIONS[name]
    for name in ORDER
}


def main(args: Sequence[str]) -> None:
    """Run a command; print what the user can correct in a line and exit with status 2.

    Args:
        args: the command and its options.
    """
    parser = SuggestingParser(prog=PROG, description=OTHERS["profiles"])
    commands = parser.add_subcommands()
    parsers = {name: CommandParser(summary) for name, summary in COMMANDS.items()}
    for each, own in parsers.items():
        commands.add_subcommand(each, own)
    name = parser.parse_args(args).subcommand
    with one_line_errors(f"{PROG} {name}"):
        if name in recipes.COMMANDS:
            recipes.COMMANDS[name].run(parsers[name].args)
        else:
            _call(name, parsers[name].args)


def _call(name: str, args: Sequence[str]) -> None:
    """Call the function of a command with the arguments of its signature."""
    function = _function(name)
    parser = SuggestingParser(prog=f"{PROG} {name}", description=COMMANDS[name])
    parser.add_function_arguments(function)
    function(**parser.parse_args(args).as_dict())


def _function(name: str) -> Callable[..., None]:
    """The function of a command, imported when it runs."""
    if name == "serve":
        from lightning_pelt.profiles.serving.http import serve  # needs the extra `serve`

        return serve
    from lightning_pelt.cli.profiles.stores import FUNCTIONS  # needs the extra `profiles`

    return FUNCTIONS[name]
