"""The section of a search report on the found design."""

from __future__ import annotations

from lightning_pelt.plans.design_space import Solution
from lightning_pelt.plans.design_space.strategies import STRATEGIES, template
from lightning_pelt.reports.plan_breakdown import BlockRow, Breakdown, MethodInBlock
from lightning_pelt.reports.plan_figure import plan_picture
from lightning_pelt.search.report.sections import Draw, listed, table
from lightning_pelt.search.search_state import SearchState


def found_design(state: SearchState, draw: Draw) -> list[str]:
    """The found design: its components, the plan figure, and a table of its blocks."""
    if state.comparison is None:
        return []
    design = state.comparison.candidates[0].design
    solution = design.nearest(state.comparison.anatomy)
    rows = [
        [
            f"{each.block.stack} {each.block.number}",
            each.group + 1,
            ", ".join(f"{STRATEGIES[k]} {_size(k, each.sizes[k])}".strip() for k in each.costs),
            f"{each.total:,}" + (" (under budget)" if each.under_budget else ""),
            f"{each.share:,}",
        ]
        for each in solution.blocks
    ]
    each = [f"{letters or 'none'} in group {n}" for n, letters in enumerate(design.strategies, 1)]
    groups = listed(each)
    return [
        "## The found design",
        "",
        f"Groups by {design.pattern}, parameters by {design.allocation} allocation, methods "
        f"{groups}: {solution.total:,} of {solution.target:,} parameters "
        f"({solution.total / solution.target:.1%}), head excluded. Blocks that are not listed are "
        "not tuned.",
        "",
        *draw("design", lambda: plan_picture(breakdown(solution), "The found design")),
        *table(["block", "group", "methods", "parameters", "share"], rows),
    ]


def breakdown(solution: Solution) -> Breakdown:
    """The breakdown of a solved design for the plan figure; without head and gates."""
    names = {letter: template(letter).name for letter in STRATEGIES}
    rows = tuple(
        BlockRow(
            each.block,
            str(each.group + 1),
            {
                names[letter]: MethodInBlock(_size(letter, each.sizes[letter]), count)
                for letter, count in each.parameters.items()
            },
            each.share,
            each.under_budget,
        )
        for each in solution.blocks
    )
    methods = tuple(n for n in names.values() if any(n in row.methods for row in rows))
    totals = {
        name: sum(row.methods[name].parameters for row in rows if name in row.methods)
        for name in methods
    }
    return Breakdown(
        rows,
        methods=methods,
        outside={},
        deployed=totals,
        gates={},
        norms=0,
        head=0,
        backbone=solution.anatomy.parameters,
        solution=solution,
    )


def _size(letter: str, size: int) -> str:
    return {"A": f"m={size}", "P": f"l={size}", "L": f"r={size}", "B": ""}[letter]
