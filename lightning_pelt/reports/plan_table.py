"""A plan as a plain table: a row per block, a column per method."""

from __future__ import annotations

from collections.abc import Mapping

from tabulate import SEPARATING_LINE, tabulate

from lightning_pelt.plans import Plan
from lightning_pelt.plans.design_space import Design
from lightning_pelt.reports.plan_breakdown import BlockRow, Breakdown, MethodInBlock

EMPTY = "-"


def format_breakdown(found: Breakdown, *, head: str = "") -> str:
    """The table, and below it the parameters that are trained besides the methods.

    Args:
        found: the plan on a model.
        head: text for the head; by default its number of parameters.

    Example:
        >>> from lightning_pelt import LoRA, Plan, attach
        >>> from lightning_pelt.reports.plan_breakdown import break_down
        >>> from lightning_pelt.testing import tiny_bert
        >>> print(format_breakdown(break_down(attach(tiny_bert(), Plan.uniform(LoRA(r=2))))))
        block           lora    total
        -----------  -------  -------
        encoder  0   r=2 256      256
        encoder  1   r=2 256      256
        -----------  -------  -------
        total            512      512
        of backbone   2.276%   2.276%
        <BLANKLINE>
        head      99
        gates     none
        norms     frozen
        backbone  22,496, frozen
    """
    besides = "\n".join(_besides(found, head))
    return f"{_table(found)}\n\n{besides}" if found.methods else besides


def describe(plan: Plan, found: Breakdown) -> str:
    """A design's groups, allocation and budget in two lines; the class name of other plans."""
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
    letters = ", ".join(f"({','.join(group) or EMPTY})" for group in plan.strategies)
    return (
        f"{name}: {plan.pattern} of {counts} tuned blocks, stacks {plan.stacks}; {letters}; "
        f"{plan.allocation} over {plan.over}\n"
        f"budget {target:,} ({target / found.backbone:.3%} of the backbone's {found.backbone:,}), "
        f"met with {total:,} ({total / target:.1%} of it, {total / found.backbone:.3%})"
    )


def _table(found: Breakdown) -> str:
    designed, grouped = found.solution is not None, len(found.groups) > 1
    header = [
        "block",
        *(["group"] if grouped else []),
        *found.methods,
        "total",
        *(["share", "filled", ""] if designed else []),
    ]
    widths = {name: _widths(found, name) for name in found.methods}
    rows: list[str | list[str]] = []
    for index, row in enumerate(found.rows):
        if index and row.group != found.rows[index - 1].group:
            rows.append([""] * len(header))
        rows.append(_row(row, found, widths, grouped=grouped, designed=designed))
    rows.append(SEPARATING_LINE)
    for name, cells in _summary(found):
        share = _filled(found, name) if designed else []
        rows.append([name, *([""] if grouped else []), *cells, *share])
    align = ("left", *["right"] * (len(header) - 1))
    return tabulate(rows, header, disable_numparse=True, colalign=align)


def _widths(found: Breakdown, name: str) -> tuple[int, int]:
    """The widths of the sizes and of the numbers in the column of a method."""
    methods = [row.methods[name] for row in found.rows if name in row.methods]
    sizes = [len(method.size) for method in methods]
    return max(sizes, default=0), max((len(_number(method)) for method in methods), default=0)


def _number(method: MethodInBlock) -> str:
    return f"{method.parameters:,}" if method.parameters or not method.size else ""


def _row(
    row: BlockRow,
    found: Breakdown,
    widths: Mapping[str, tuple[int, int]],
    *,
    grouped: bool,
    designed: bool,
) -> list[str]:
    cells = []
    for name in found.methods:
        method, (size, number) = row.methods.get(name), widths[name]
        text = f"{method.size:<{size}} {_number(method):>{number}}" if method else EMPTY
        cells.append(text.strip() if not size else text)
    share = (
        [
            f"{row.share:,}" if row.share is not None else EMPTY,
            f"{row.filled:.0%}" if row.filled is not None else EMPTY,
            "under budget" if row.under_budget else "",
        ]
        if designed
        else []
    )
    block = f"{row.block.stack} {row.block.number:>2}"
    return [block, *([row.group] if grouped else []), *cells, f"{row.total:,}", *share]


def _summary(found: Breakdown) -> list[tuple[str, list[str]]]:
    """The rows below the blocks: a name, a number per method, and the sum over the methods."""
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


def _filled(found: Breakdown, name: str) -> list[str]:
    """The last cells of a summary row: in the row of totals, the budget and its use in percent."""
    assert found.solution is not None
    if name != "total":
        return [""] * 3
    target = found.solution.target
    return [f"{target:,}", f"{found.solution.total / target:.0%}", ""]


def _besides(found: Breakdown, head: str) -> list[str]:
    """One line each for head, gates, norms and backbone."""
    gates = sum(found.gates.values())
    state = "trained" if found.base_trained else "frozen"
    rows = [
        ("head", head or f"{found.head:,}"),
        ("gates", f"{gates:,}, counted separately" if gates else "none"),
        ("norms", f"{found.norms:,}" if found.norms else "frozen"),
        ("backbone", ", ".join([f"{found.backbone:,}", state, *filter(None, [found.quantised])])),
    ]
    return [f"{name:<9} {text}" for name, text in rows]
