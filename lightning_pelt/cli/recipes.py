"""``lightning-pelt recipes``: the recipes that an installation has."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from lightning_pelt.cli import shipped_recipes
from lightning_pelt.cli.errors import one_line_errors
from lightning_pelt.cli.overview import OTHERS
from lightning_pelt.cli.parser import SuggestingParser

PROG = "lightning-pelt recipes"


def main(args: Sequence[str]) -> None:
    """Print the recipes, or the YAML of one.

    Args:
        args: nothing, or the name of a recipe.
    """
    parser = SuggestingParser(prog=PROG, description=OTHERS["recipes"])
    parser.add_argument("name", nargs="?", help="Recipe to print; by default all are listed.")
    with one_line_errors(PROG):
        name = parser.parse_args(args).name
        if name is not None:
            print(shipped_recipes.recipe(name).read_text(encoding="utf-8"), end="")
            return
    found = shipped_recipes.recipes()
    rows = [(name, shipped_recipes.summary(file)) for name, file in found.items()]
    print(tabulate(rows, tablefmt="plain", maxcolwidths=[None, 76]))
    print(f"\nTo train one:   lightning-pelt fit --config {shipped_recipes.SCHEME}NAME")
    print("To change one:  lightning-pelt recipes NAME > mine.yaml")
