"""The report of a search: a Markdown page with figures, also of an unfinished search."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path

from matplotlib.figure import Figure

from lightning_pelt.plans.design_space import Design
from lightning_pelt.plans.design_space.strategies import STRATEGIES
from lightning_pelt.reports.figures import save
from lightning_pelt.search.greedy_search import SWAPS
from lightning_pelt.search.queue.job import Outcomes
from lightning_pelt.search.report import figures, sections
from lightning_pelt.search.report.choices_figure import OptionScore, StageChoice, choices
from lightning_pelt.search.report.found_design import found_design
from lightning_pelt.search.report.race_figure import race_figure
from lightning_pelt.search.report.sections import UNKNOWN, Draw, listed, stage_title, table
from lightning_pelt.search.report.summary import (
    FINAL,
    GATED,
    candidate_scores,
    comparable_scores,
    stage_costs,
)
from lightning_pelt.search.search_state import SearchState, StageRecord
from lightning_pelt.search.settings import Settings
from lightning_pelt.search.space import START, Space
from lightning_pelt.utils.files import write_aside
from lightning_pelt.utils.text import readable_duration

NAME = "report.md"

_logger = logging.getLogger(__name__)

# The choices of Chen et al. on T5-base, with four groups.
PAPER = {
    "grouping": "spindle",
    "allocation": "uniform",
    "groups": "1+2+3+4",
    "group 1": "AL",
    "group 2": "AP",
    "group 3": "APB",
    "group 4": "PBL",
}


def write_report(
    folder: str | Path, state: SearchState, outcomes: Outcomes, *, settings: Settings, space: Space
) -> Path:
    """Write ``report.md`` and its figures; an older page is replaced once the new one is complete.

    Args:
        folder: is created if it does not exist.
        state: of the search, which need not be finished.
        outcomes: by the key of the job.
        settings: of the search.
        space: of the search.

    Returns:
        Path of the page. If a figure cannot be drawn, the page and a warning say so.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def draw(name: str, make: Callable[[], Figure]) -> list[str]:
        title = name.replace("_", " ")
        try:
            save(make(), folder / f"{name}.png")
        except Exception as error:  # a search of days must not end because of a figure
            _logger.warning("the figure %s cannot be drawn: %s", title, error)
            return [f"The figure of {title} could not be drawn: {error}", ""]
        return [f"![{title}]({name}.png)", ""]

    lines = [
        f"# Design search: {settings.name}",
        "",
        *_recommendation(state, outcomes),
        *_progress(state),
        *_searched(settings, space),
        *found_design(state, draw),
        *_final_comparison(state, outcomes, draw),
        *_choices(state, settings, space, draw),
        *_gates(state),
        *([sections.how_to_read(state.records), ""] if state.records else []),
        *(line for record in state.records for line in _stage(record, draw)),
        *_cost(state, outcomes, len(settings.tasks), draw),
    ]
    text = "\n".join(lines).rstrip() + "\n"
    path = folder / NAME
    write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))
    return path


def _recommendation(state: SearchState, outcomes: Outcomes) -> list[str]:
    """What to use, before how it was found."""
    if state.comparison is None or not state.finished:
        return []
    return sections.recommendation(candidate_scores(state.comparison, outcomes))


def _progress(state: SearchState) -> list[str]:
    if state.finished:
        return []
    if state.comparison is not None:
        where = FINAL
    else:
        where = stage_title(state.records[-1].stage.name) if state.records else GATED
    wanted = f"{len(state.wanted):,} fits"
    return [f"The search is not finished. It is waiting for {wanted} of: {where}.", ""]


def _searched(settings: Settings, space: Space) -> list[str]:
    target = Design(["L"], budget=settings.search_budget).target(space.anatomy)
    last = Design(["L"], budget=settings.comparison_budget).target(space.anatomy)
    fit = settings.fit
    length, unit = (fit.max_epochs, "epoch") if fit.max_epochs else (fit.max_steps, "step")
    rates = "".join(f", {group} {rate:g}" for group, rate in fit.lrs.items())
    rows: list[tuple[object, object]] = [
        ("backbone", f"{settings.backbone}, {space.anatomy.parameters:,} parameters"),
        ("budget of the search", f"{target:,} parameters{_share(settings.search_budget)}"),
        (
            "budget of the final comparison",
            f"{last:,} parameters{_share(settings.comparison_budget)}",
        ),
        ("tasks", listed(list(settings.tasks))),
        (
            "each fit",
            f"{length} {unit}{'s' if length != 1 else ''}; learning rate {fit.lr:g}{rates}",
        ),
        ("scored on", f"{settings.holdout:.0%} of the training rows, held out"),
        ("method", _method(settings)),
        ("letters", ", ".join(f"{letter} {name}" for letter, name in STRATEGIES.items())),
        ("groups", f"{settings.groups}, stacks: {settings.stacks}"),
        ("seed", settings.seed),
    ]
    facts = table(["", ""], rows, align="left")
    return ["## What was searched", "", *facts, *_groupings(space)]


def _method(settings: Settings) -> str:
    rules = settings.racing
    if settings.method == "racing":
        return (
            f"paired racing: {rules.first} replicates, then {rules.step} at a time, at most "
            f"{rules.cap}; alpha {rules.alpha:g}; ties within {rules.tie:g} points"
        )
    if settings.method == "brute_force":
        return f"brute force: {settings.designs} designs for each option, unpaired"
    return "gates: one run with every method in every group"


def _groupings(space: Space) -> list[str]:
    """The patterns that give the same grouping at this depth."""
    merged = [choice for choice in space.groupings.values() if len(choice.names) > 1]
    depth = sum(len(stack.blocks) for stack in space.anatomy.stacks)
    return [
        f"{listed(choice.names)} are one grouping at depth {depth}: "
        f"{'; '.join(', '.join(map(str, sizes)) for sizes in choice.sizes)}. This report calls it "
        f"{choice.names[0]}.\n"
        for choice in merged
    ]


def _final_comparison(state: SearchState, outcomes: Outcomes, draw: Draw) -> list[str]:
    if state.comparison is None:
        return []
    plans = candidate_scores(state.comparison, outcomes)
    if not any(score is not None for plan in plans for s in plan.scores.values() for score in s):
        return []
    figure = draw("comparison", lambda: figures.comparison(plans))
    return ["## Final comparison", "", *figure, *sections.final_comparison(plans)]


def _choices(state: SearchState, settings: Settings, space: Space, draw: Draw) -> list[str]:
    """The choices, next to those of the paper on T5-base, and the figure of all stages."""
    if not state.records or not state.settled:
        return []
    names = {n: n if len(c.names) == 1 else " = ".join(c.names) for n, c in space.groupings.items()}
    paper = PAPER if settings.groups == 4 else {}
    rows = [
        (
            stage_title(stage),
            names.get(chosen, chosen) if stage == "grouping" else chosen,
            paper.get(stage, UNKNOWN),
        )
        for stage, chosen in state.settled.items()
    ]
    header = ["stage", "chosen", "the paper, on T5-base"]
    lines = ["## Choices", "", *table(header, rows, align="left")]
    shown = [_stage_choice(record) for record in state.records if record.selection.looks]
    return lines + (draw("choices", lambda: choices(shown)) if shown else [])


def _stage_choice(record: StageRecord) -> StageChoice:
    fresh = {s.arm: s.mean for s in record.confirmation.stats()} if record.confirmation else {}
    again = {arm: mean for arm, mean in fresh.items() if isfinite(mean)}
    options = [
        OptionScore(name, score, low, high, again.get(name))
        for name, (score, low, high) in comparable_scores(record.selection).items()
    ]
    return StageChoice(record.stage.name, options, record.chosen)


def _gates(state: SearchState) -> list[str]:
    if not state.gate_means:
        return []
    return ["## Gates", "", *sections.gates(state.gate_means, state.settled)]


def _stage(record: StageRecord, draw: Draw) -> Iterator[str]:
    name, selection = record.stage.name, record.selection
    yield from (f"## {stage_title(name)}", "")
    if selection.looks and name != START:
        winner = selection.result().winner if selection.finished else None
        rules = getattr(selection, "rules", None)
        tie = rules.tie if rules else None
        file = name if name == SWAPS else f"race_{name.replace(' ', '_')}"
        title, looks = stage_title(name), selection.looks
        yield from draw(file, lambda: race_figure(title, looks, winner=winner, tie=tie))
    yield from sections.stage_section(record)


def _cost(state: SearchState, outcomes: Outcomes, tasks: int, draw: Draw) -> list[str]:
    stages = stage_costs(state, outcomes, tasks)
    fits, diverged = sum(s.fits for s in stages), sum(s.diverged for s in stages)
    duration = readable_duration(sum(s.seconds for s in stages))
    summary = f"{fits:,} fits took {duration} over all workers; {diverged:,} of them diverged."
    lines = ["## Cost", "", summary, ""]
    if not stages:
        return lines
    rows = [
        (
            s.stage,
            f"{s.fits:,}",
            f"{s.reused:,}",
            readable_duration(s.seconds),
            s.diverged,
            f"{s.paper_fits:,}" if s.paper_fits else UNKNOWN,
            readable_duration(s.paper_seconds) if s.paper_fits else UNKNOWN,
        )
        for s in stages
    ]
    header = ["stage", "fits", "reused", "time", "diverged", "paper's fits", "paper's time"]
    if fits:
        lines += draw("cost", lambda: figures.cost(stages))
    lines += table(header, rows)
    if paper := sum(s.paper_fits for s in stages):
        own = sum(s.fits for s in stages if s.paper_fits)
        lines += [
            f"The paper's protocol, 100 designs for each option, needs {paper:,} fits for the same "
            f"choices; this search needed {own:,} ({own / paper:.0%}). The paper's time assumes "
            "this search's mean duration of a fit.",
            "",
        ]
    return lines


def _share(budget: float) -> str:
    return f", {budget:.3%} of the backbone" if budget < 1 else ""
