"""Results of strategies as tables in Markdown, one for each precision, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

EMPTY = "-"  # a cell without a result
PREFIX = "## "  # of the heading of a table, the precision


class Cell(NamedTuple):
    strategy: str
    plan: str
    precision: str

    @property
    def folder(self) -> str:
        return "-".join(self).replace(" ", "_")


def tables(results: Mapping[Cell, str], cells: Iterable[Cell], names: Mapping[str, str]) -> str:
    """A table for each precision: a row for each strategy, a column for each plan.

    Args:
        cells: all cells, in the order of rows, columns and tables.
        names: of strategies that are not called as Lightning calls them.
    """
    cells = list(cells)
    parts = []
    for precision in dict.fromkeys(cell.precision for cell in cells):
        here = [cell for cell in cells if cell.precision == precision]
        plans = list(dict.fromkeys(cell.plan for cell in here))
        lines = [f"| Strategy | {' | '.join(plans)} |", "|---" * (len(plans) + 1) + "|"]
        for strategy in dict.fromkeys(cell.strategy for cell in here):
            found = [results.get(Cell(strategy, plan, precision), EMPTY) for plan in plans]
            lines.append(f"| {names.get(strategy, f'`{strategy}`')} | {' | '.join(found)} |")
        parts.append("\n".join([f"{PREFIX}{precision}", "", *lines]))
    return "\n\n".join(parts)


def read_tables(text: str, names: Mapping[str, str]) -> dict[Cell, str]:
    """The results in a text with :func:`tables`.

    Raises:
        ValueError: a row has another number of columns than its table.
    """
    return dict(_read(text, {name: strategy for strategy, name in names.items()}))


def _read(text: str, strategies: Mapping[str, str]) -> Iterator[tuple[Cell, str]]:
    precision, plans = "", list[str]()
    for line in text.splitlines():
        if line.startswith(PREFIX):
            precision, plans = line.removeprefix(PREFIX), []
        elif line.startswith("| ") and precision:
            first, *rest = [part.strip() for part in line.strip("| ").split(" | ")]
            if not plans:
                plans = rest
                continue
            strategy = strategies.get(first, first.strip("`"))
            for plan, found in zip(plans, rest, strict=True):
                if found != EMPTY:
                    yield Cell(strategy, plan, precision), found
