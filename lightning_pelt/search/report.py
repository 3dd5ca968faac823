"""The report of a search: a page of Markdown with its pictures, also while the search goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path

from matplotlib.figure import Figure

from lightning_pelt.design_space import Design, Solution
from lightning_pelt.design_space.costs import STRATEGIES, template
from lightning_pelt.files import write_aside
from lightning_pelt.plan_cli.breakdown import Breakdown, Cell, Row
from lightning_pelt.plan_cli.picture import plan_picture
from lightning_pelt.plots import save
from lightning_pelt.search import chapters, pictures
from lightning_pelt.search.chapters import UNKNOWN, listed, question, table
from lightning_pelt.search.course import SWAPS, Record, Walk
from lightning_pelt.search.race_picture import race
from lightning_pelt.search.settings import Settings
from lightning_pelt.search.space import START, Space
from lightning_pelt.search.summary import FINAL, Outcomes, compared, levelled, spent

NAME = "report.md"
# What Chen et al. found on T5-base, with four groups.
PAPER = {
    "grouping": "spindle",
    "allocation": "uniform",
    "groups": "1+2+3+4",
    "group 1": "AL",
    "group 2": "AP",
    "group 3": "APB",
    "group 4": "PBL",
}
Draw = Callable[[str, Callable[[], Figure]], list[str]]


def write_report(
    folder: str | Path, walk: Walk, outcomes: Outcomes, *, settings: Settings, space: Space
) -> Path:
    """Write ``report.md`` and its pictures; what was there stays until all of the new is whole.

    Args:
        folder: is made if it is not there.
        walk: as far as the search has come; it need not be over.
        outcomes: by the key of their cell.
        settings: of the search.
        space: that is searched.

    Returns:
        Path of the page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def draw(name: str, make: Callable[[], Figure]) -> list[str]:
        save(make(), folder / f"{name}.png")
        return [f"![{name.replace('_', ' ')}]({name}.png)", ""]

    lines = [
        f"# Design search: {settings.name}",
        "",
        *_state(walk),
        *_searched(settings, space),
        *(_found(walk, draw) if walk.finals else []),
        *(_finals(walk, outcomes, draw) if walk.finals else []),
        *_choices(walk, settings, space, draw),
        *(["## Gates", "", *chapters.gates(walk.readings, walk.settled)] if walk.readings else []),
        *([chapters.reading(walk.records), ""] if walk.records else []),
        *(line for record in walk.records for line in _stage(record, draw)),
        *_cost(walk, outcomes, len(settings.tasks), draw),
    ]
    text = "\n".join(lines).rstrip() + "\n"
    path = folder / NAME
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))
    return path


def breakdown(solution: Solution) -> Breakdown:
    """A solved design as the picture of plans takes it; without head and gates."""
    names = {letter: template(letter).name for letter in STRATEGIES}
    rows = tuple(
        Row(
            each.block,
            str(each.group + 1),
            {names[k]: Cell(_size(k, each.sizes[k]), n) for k, n in each.parameters.items()},
            each.share,
            each.under_budget,
        )
        for each in solution.blocks
    )
    methods = [name for name in names.values() if any(name in row.cells for row in rows)]
    totals = {m: sum(row.cells[m].parameters for row in rows if m in row.cells) for m in methods}
    backbone = solution.anatomy.parameters
    return Breakdown(rows, tuple(methods), {}, totals, {}, 0, 0, backbone, solution=solution)


def _state(walk: Walk) -> list[str]:
    if walk.over:
        return ["The search is over.", ""]
    if walk.finals is not None:
        where = FINAL
    else:
        where = question(walk.records[-1].stage.name) if walk.records else "the gated run"
    return [f"The search still goes on. It wants {len(walk.wanted):,} fits now for: {where}.", ""]


def _searched(settings: Settings, space: Space) -> list[str]:
    target = Design(["L"], budget=settings.search_budget).target(space.anatomy)
    last = Design(["L"], budget=settings.last_budget).target(space.anatomy)
    rules = settings.racing
    method = {
        "racing": f"paired racing: {rules.first} blocks, then {rules.step} at a time, at most "
        f"{rules.cap}; alpha {rules.alpha:g}; ties within {rules.tie:g} points",
        "brute_force": f"brute force: {settings.designs} designs for each option, unpaired",
        "gates": "gates: one run with every method in every group",
    }
    fit = settings.fit
    length, unit = (fit.max_epochs, "epoch") if fit.max_epochs else (fit.max_steps, "step")
    rates = "".join(f", {group} {rate:g}" for group, rate in fit.lrs.items())
    rows: list[list[object]] = [
        ["backbone", f"{settings.backbone}, {space.anatomy.parameters:,} parameters"],
        ["budget of the search", f"{target:,} parameters{_share(settings.search_budget)}"],
        ["budget of the final comparison", f"{last:,} parameters{_share(settings.last_budget)}"],
        ["tasks", listed(list(settings.tasks))],
        [
            "each fit",
            f"{length} {unit}{'s' if length != 1 else ''}; learning rate {fit.lr:g}{rates}",
        ],
        ["scored on", f"{settings.holdout:.0%} of the training rows, held out"],
        ["method", method[settings.method]],
        ["letters", ", ".join(f"{letter} {name}" for letter, name in STRATEGIES.items())],
        ["groups", f"{settings.groups}, stacks: {settings.stacks}"],
        ["seed", settings.seed],
    ]
    facts = table(["", ""], rows, rest="---")
    return ["## What was searched", "", *facts, *_groupings(space)]


def _groupings(space: Space) -> list[str]:
    """The blocks of every grouping; patterns that come to the same one are said to."""
    merged = [choice for choice in space.groupings.values() if len(choice.names) > 1]
    depth = sum(len(stack.blocks) for stack in space.anatomy.stacks)
    return [
        f"{listed(choice.names)} are one grouping at depth {depth}: "
        f"{'; '.join(', '.join(map(str, sizes)) for sizes in choice.sizes)}. It is called "
        f"{choice.names[0]} here.\n"
        for choice in merged
    ]


def _found(walk: Walk, draw: Draw) -> list[str]:
    assert walk.finals is not None
    found = walk.finals.contestants[0]
    solution = found.design.nearest(walk.finals.anatomy)
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
    design = found.design
    groups = listed([letters or "nothing" for letters in design.strategies])
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


def _finals(walk: Walk, outcomes: Outcomes, draw: Draw) -> list[str]:
    assert walk.finals is not None
    plans = compared(walk.finals, outcomes)
    if not any(score is not None for plan in plans for s in plan.scores.values() for score in s):
        return []
    picture = draw("comparison", lambda: pictures.comparison(plans))
    return ["## Final comparison", "", *picture, *chapters.finals(plans)]


def _choices(walk: Walk, settings: Settings, space: Space, draw: Draw) -> list[str]:
    """What was chosen, beside what the paper chose on T5-base, and the picture of all stages."""
    if not walk.records or not walk.settled:
        return []
    names = {n: n if len(c.names) == 1 else " = ".join(c.names) for n, c in space.groupings.items()}
    paper = PAPER if settings.groups == 4 else {}
    rows = [
        [question(stage), names.get(chosen, chosen) if stage == "grouping" else chosen,
         paper.get(stage, UNKNOWN)]
        for stage, chosen in walk.settled.items()
    ]  # fmt: skip
    header = ["stage", "chosen", "the paper, on T5-base"]
    lines = ["## Choices", "", *table(header, rows, rest="---")]
    shown = [_chosen(record) for record in walk.records if record.contest.looks]
    return lines + (draw("choices", lambda: pictures.choices(shown)) if shown else [])


def _chosen(record: Record) -> pictures.Chosen:
    fresh = {s.arm: s.mean for s in record.fresh.standings()} if record.fresh else {}
    known = {arm: mean for arm, mean in fresh.items() if isfinite(mean)}
    return pictures.Chosen(record.stage.name, levelled(record.contest), record.chosen, known)


def _stage(record: Record, draw: Draw) -> Iterator[str]:
    name, contest = record.stage.name, record.contest
    yield from (f"## {question(name)}", "")
    if contest.looks and name != START:
        winner = contest.result().winner if contest.over else None
        rules = getattr(contest, "rules", None)
        tie = rules.tie if rules else None
        file = name if name == SWAPS else f"race_{name.replace(' ', '_')}"
        looks = contest.looks
        yield from draw(file, lambda: race(question(name), looks, winner=winner, tie=tie))
    yield from chapters.stage(record)


def _cost(walk: Walk, outcomes: Outcomes, tasks: int, draw: Draw) -> list[str]:
    stages = spent(walk, outcomes, tasks)
    fits, diverged = sum(s.cells for s in stages), sum(s.diverged for s in stages)
    took = pictures.minutes(sum(s.seconds for s in stages))
    lines = ["## Cost", "", f"{fits:,} fits in {took} of work, all workers together; "
             f"{diverged:,} of them diverged.", ""]  # fmt: skip
    if not stages:
        return lines
    rows = [
        [s.stage, f"{s.cells:,}", f"{s.reused:,}", pictures.minutes(s.seconds), s.diverged,
         f"{s.paper_cells:,}" if s.paper_cells else UNKNOWN,
         pictures.minutes(s.paper_seconds) if s.paper_cells else UNKNOWN]
        for s in stages
    ]  # fmt: skip
    header = ["stage", "fits", "reused", "time", "diverged", "paper's fits", "paper's time"]
    mine = sum(s.cells for s in stages if s.paper_cells)
    paper = sum(s.paper_cells for s in stages)
    lines += [
        *(draw("cost", lambda: pictures.cost(stages)) if any(s.cells for s in stages) else []),
        *table(header, rows),
    ]
    if paper:
        lines += [
            f"The paper's protocol, 100 designs for each option, would have taken {paper:,} fits "
            f"for the same questions; these took {mine:,} ({mine / paper:.0%}). Its time is at "
            "this search's mean per fit.",
            "",
        ]
    return lines


def _share(budget: float) -> str:
    return f", {budget:.3%} of the backbone" if budget < 1 else ""


def _size(letter: str, size: int) -> str:
    return {"A": f"m={size}", "P": f"l={size}", "L": f"r={size}", "B": ""}[letter]
