"""A plan as a plain table: a row for each block, a column for each method."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_pelt.callbacks._reading import aligned
from lightning_pelt.design_space import Design
from lightning_pelt.plan import Plan
from lightning_pelt.plan_cli.breakdown import Breakdown, Cell, Row

NONE = "-"


def tabulate(found: Breakdown, *, head: str = "") -> str:
    """The table, and below it what is trained besides the methods.

    Args:
        found: the plan on a model.
        head: how the head was counted; by default its number of parameters.
    """
    designed, grouped = found.solution is not None, len(found.groups) > 1
    header = [
        "block",
        *(["group"] if grouped else []),
        *found.methods,
        "total",
        *(["share", "filled", ""] if designed else []),
    ]
    widths = {name: _widths(found, name) for name in found.methods}
    rows = [_row(row, found, widths, grouped=grouped, designed=designed) for row in found.rows]
    summary = [
        [name, *([""] if grouped else []), *cells, *([""] * 3 if designed else [])]
        for name, cells in _summary(found)
    ]
    if designed:
        _fill_total(found, summary)
    heading, rule, *lines = aligned([header, *rows, *summary]).split("\n")
    lines, below = lines[: len(rows)], lines[len(rows) :]
    groups = [row.group for row in found.rows]
    blocks: list[str] = []
    for i, line in enumerate(lines):
        blocks += [""] if i and groups[i] != groups[i - 1] else []
        blocks.append(line)
    table = [heading, rule, *blocks, rule, *below] if found.methods else []
    return "\n".join([*table, *([""] if table else []), *_besides(found, head)])


def describe(plan: Plan, found: Breakdown) -> str:
    """One line on a design: its groups, its mode, and its budget; of other plans, its name."""
    name = type(plan).__name__
    if not isinstance(plan, Design) or found.solution is None:
        return name
    target, total = found.solution.target, found.solution.total
    sizes: dict[str, dict[int, int]] = {}
    for each in found.solution.blocks:
        of_stack = sizes.setdefault(each.block.stack if plan.stacks == "per_stack" else "", {})
        of_stack[each.group] = of_stack.get(each.group, 0) + 1
    counts = "; ".join(
        f"{stack} {numbers}".strip()
        for stack, groups in sizes.items()
        for numbers in [
            ", ".join(str(groups.get(number, 0)) for number in range(len(plan.strategies)))
        ]
    )
    letters = ", ".join(f"({','.join(group) or NONE})" for group in plan.strategies)
    return (
        f"{name}: {plan.pattern} of {counts} tuned blocks, stacks {plan.stacks}; {letters}; "
        f"{plan.allocation} over {plan.over}\n"
        f"budget {target:,} ({target / found.backbone:.3%} of the backbone's {found.backbone:,}), "
        f"met with {total:,} ({total / target:.1%} of it, {total / found.backbone:.3%})"
    )


def _widths(found: Breakdown, name: str) -> tuple[int, int]:
    """Of the sizes and of the numbers in a method's column."""
    cells = [row.cells[name] for row in found.rows if name in row.cells]
    sizes = [len(cell.size) for cell in cells]
    return max(sizes, default=0), max((len(_number(cell)) for cell in cells), default=0)


def _number(cell: Cell) -> str:
    return f"{cell.parameters:,}" if cell.parameters or not cell.size else ""


def _row(
    row: Row,
    found: Breakdown,
    widths: Mapping[str, tuple[int, int]],
    *,
    grouped: bool,
    designed: bool,
) -> list[str]:
    cells = []
    for name in found.methods:
        cell, (size, number) = row.cells.get(name), widths[name]
        text = f"{cell.size:<{size}} {_number(cell):>{number}}" if cell else NONE
        cells.append(text.strip() if not size else text)
    target = (
        [
            f"{row.share:,}" if row.share is not None else NONE,
            f"{row.filled:.0%}" if row.filled is not None else NONE,
            "under budget" if row.under_budget else "",
        ]
        if designed
        else []
    )
    block = f"{row.block.stack} {row.block.number:>2}"
    return [block, *([row.group] if grouped else []), *cells, f"{row.total:,}", *target]


def _summary(found: Breakdown) -> list[tuple[str, list[str]]]:
    """Rows below the blocks: numbers by method and their sum; the share is of what is deployed."""
    rows: list[tuple[str, Mapping[str, int], str]] = []
    if any(found.outside.values()):
        rows.append(("outside blocks", found.outside, ","))
    rows.append(("total", found.totals, ","))
    if found.deployed != found.totals:
        rows.append(("deployed", found.deployed, ","))
    rows.append(("of backbone", found.deployed, ".3%"))
    if any(found.gates.values()):
        rows.append(("gates", found.gates, ","))
    table = []
    for name, numbers, form in rows:
        each = [numbers.get(method, 0) for method in found.methods]
        unit = found.backbone if "%" in form else 1
        cells = [format(n / unit if "%" in form else n, form) for n in (*each, sum(each))]
        table.append((name, cells))
    return table


def _fill_total(found: Breakdown, summary: list[list[str]]) -> None:
    """Put the whole target and how far it is filled into the row of totals."""
    assert found.solution is not None
    target = found.solution.target
    total = next(row for row in summary if row[0] == "total")
    total[-3:] = [f"{target:,}", f"{found.solution.total / target:.0%}", ""]


def _besides(found: Breakdown, head: str) -> list[str]:
    """What is trained besides the methods' own parameters, a line each."""
    gates = sum(found.gates.values())
    rows = [
        ("head", head or f"{found.head:,}"),
        ("gates", f"{gates:,}, counted apart" if gates else "none"),
        ("norms", f"{found.norms:,}" if found.norms else "frozen"),
        ("backbone", f"{found.backbone:,}, {'trained' if found.base_trained else 'frozen'}"),
    ]
    return [f"{name:<9} {text}" for name, text in rows]
