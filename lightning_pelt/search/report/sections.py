"""Sections of a search report: sentences and Markdown tables from its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite, nan

from matplotlib.figure import Figure
from tabulate import tabulate

from lightning_pelt.search.greedy_search import SWAPS
from lightning_pelt.search.report.summary import (
    CandidateScores,
    Estimate,
    best_plan,
    difference,
    eliminated_after,
    estimate,
    plan_place,
    rank_table,
)
from lightning_pelt.search.search_state import StageRecord
from lightning_pelt.search.selection.base import ArmStats, Selection
from lightning_pelt.search.selection.brute_force import BruteForce
from lightning_pelt.search.selection.confirmation import Confirmation
from lightning_pelt.search.selection.racing import Race
from lightning_pelt.search.space import START

UNKNOWN = "-"
Draw = Callable[[str, Callable[[], Figure]], list[str]]  # saves a figure; its lines in the page
STAGE_TITLES = {
    START: "S0: designs without groups",
    "grouping": "S1: how many blocks each group holds",
    "allocation": "S2: how the budget is shared",
    "groups": "S3: which groups are tuned",
    SWAPS: "The found design against variants of one choice each",
}
BASELINE = (
    "S0 is weak by construction: about half of the blocks are untuned, and the spent share of the "
    "budget is random. The gain of S1 over S0 mixes grouping with sharing, so compare the options "
    "of S1 only with each other."
)
PAIRED = (
    "*behind* is the leader's score minus the option's, averaged over the replicates that both "
    "finished; *mean* is over the option's replicates. An option was dropped because it was behind "
    "the leader at that look, which may have lost the lead later."
)
UNPAIRED = "every option has separate replicates, and *behind* is the difference of two means."


def stage_title(stage: str) -> str:
    """Title of a stage: ``"S4: methods of group 2"``."""
    return STAGE_TITLES.get(stage, f"S4: methods of {stage}")


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, align: str = "right"
) -> list[str]:
    """Lines of a Markdown table; ``align`` applies to all columns but the first."""
    columns = ["left", *[align] * (len(header) - 1)]
    cells = [[str(cell) for cell in row] for row in rows]
    text = tabulate(
        cells,
        [*header],
        tablefmt="pipe",
        colalign=columns if cells else None,
        disable_numparse=True,
    )
    return [*text.splitlines(), ""]


def stage_section(record: StageRecord) -> list[str]:
    """Everything about a stage except its figure."""
    selection, chosen = record.selection, record.chosen
    lines = [BASELINE, ""] if record.stage.name == START else []
    lines += arm_table(selection, chosen)
    lines += [verdict(record), ""] if selection.finished else ["Not settled yet.", ""]
    if record.confirmation is not None:
        lines += [confirmation(record), ""]
    if record.stage.left_out:
        lines += ["Left out, since few or no random designs of this stage can have them:", ""]
        lines += [f"- {option}: {why}" for option, why in record.stage.left_out.items()] + [""]
    return lines


def how_to_read(records: Sequence[StageRecord]) -> str:
    """How to read the tables of the stages."""
    unpaired = any(isinstance(record.selection, BruteForce) for record in records[1:])
    return f"How to read the tables: {UNPAIRED if unpaired else PAIRED}"


def arm_table(selection: Selection, chosen: str | None) -> list[str]:
    """A table of the options, the chosen one first, then by how far they are behind."""
    dropped = eliminated_after(selection.looks)
    arms = sorted(
        selection.stats(),
        key=lambda s: (s.arm != chosen, s.arm in dropped, s.behind if isfinite(s.behind) else 1e9),
    )
    rows = [
        (
            f"**{s.arm}**" if s.arm == chosen else s.arm,
            s.blocks,
            number(s.mean, 2),
            _behind(s),
            _status(s, selection, chosen, dropped),
            s.diverged,
        )
        for s in arms
    ]
    behind = f"behind ({confidence(selection):.3g}% interval)"
    return table(["option", "replicates", "mean", behind, "verdict", "diverged"], rows)


def confidence(selection: Selection) -> float:
    """Level of the intervals of a selection in percent: that of its one-sided tests."""
    if isinstance(selection, Confirmation):
        return 100 * (1 - 2 * selection.alpha)
    return 100 * (1 - 2 * selection.level) if isinstance(selection, Race) else 95.0


def verdict(record: StageRecord) -> str:
    """How the selection of a stage ended, and how certain the choice is."""
    result, selection = record.selection.result(), record.selection
    winner, tied = result.winner, listed(result.tied)
    if result.verdict == "only":
        start = record.stage.name == START
        return "The baseline: no choice." if start else f"There was one option, **{winner}**."
    if isinstance(selection, BruteForce):
        best = f"**{winner}** has the best mean of {selection.designs} designs each."
        return best + _noise(selection)
    if isinstance(selection, Confirmation):
        if winner == selection.incumbent:
            return "No variant was shown to be better, so the found design stays."
        return f"**{winner}** was shown to be better and replaces the found design."
    if result.verdict == "winner":
        most = max(s.blocks for s in selection.stats())
        return f"**{winner}** won: all others were dropped within {most} replicates."
    if result.verdict == "tie":
        return (
            f"A tie: {tied} were shown to be within {_tie(selection)} of the leader. "
            f"**{winner}** won as the simplest of them."
        )
    return (
        f"The replicates ran out before a difference was shown between {tied}: their differences "
        f"are within noise. **{winner}** won by its mean alone."
    )


def confirmation(record: StageRecord) -> str:
    """The comparison of the winner with its runner-up on new replicates."""
    assert record.confirmation is not None
    winner, other = record.confirmation.arms[0], record.confirmation.arms[1]
    now = {s.arm: s for s in record.confirmation.stats()}
    if not record.confirmation.finished:
        return f"{winner} and {other} are now compared again on new replicates."
    gap = now[other]
    text = (
        f"Compared again on {gap.blocks} new replicates, which no choice was based on: {winner} "
        f"{number(now[winner].mean, 2)}, {other} {number(gap.mean, 2)}, a difference of "
        f"{_interval(gap.behind, gap.low, gap.high)}, a {confidence(record.confirmation):.3g}% "
        "interval. "
    )
    if record.chosen != winner:
        return text + f"So **{record.chosen}** replaces it."
    if gap.low > 0:
        return text + "This confirms the choice."
    return text + "This is within noise: the choice is kept, but not confirmed."


def final_comparison(plans: Sequence[CandidateScores]) -> list[str]:
    """The final comparison: scores with ranks, and the found design against each other plan."""
    ranks, tasks = rank_table(plans), list(plans[0].scores)
    rows = []
    for plan in plans:
        scores = [
            f"{spread(estimate(plan.scores[task]))} (rank {ranks[task][plan.name]:g})"
            for task in tasks
        ]
        share = f"{plan.parameters / plan.target:.0%}"
        mark = f", **{plan.mark}**" if plan.mark else ""
        mean, rank = spread(estimate(plan.overall)), f"{ranks[''][plan.name]:.2f}"
        rows.append([plan.title, f"{plan.parameters:,} ({share}{mark})", *scores, mean, rank])
    header = ["plan", "parameters (of the budget)", *tasks, "mean over tasks", "mean rank"]
    seeds = max(len(scores) for scores in plans[0].scores.values())
    lines = [
        "Points on the dev split, which the search has not used: mean ± standard "
        f"deviation over {seeds} seeds, each plan trained on all training rows.",
        "",
        *table(header, rows),
    ]
    if missing := sum(score is None for plan in plans for s in plan.scores.values() for score in s):
        lines += [f"{missing} of the fits diverged or are not finished; no mean has them.", ""]
    return lines + _differences(plans)


def recommendation(plans: Sequence[CandidateScores]) -> list[str]:
    """The plan with the best mean over tasks, and those that are within noise of it."""
    best = best_plan(plans)
    if best is None:
        return []
    known = [plan for plan in plans if isfinite(estimate(plan.overall).mean)]
    others = [plan for plan in known if plan is not best]
    close = [plan_place(plan) for plan in others if not difference(best, plan).low > 0]
    text = f"**Use {plan_place(best)}**: {spread(estimate(best.overall))} points."
    if close:
        verb = "are" if len(close) > 1 else "is"
        text += f" Within noise of it {verb}: {listed(close)}."
    return [f"{text} {len(known)} plans were compared, of at most {best.target:,} parameters.", ""]


def _differences(plans: Sequence[CandidateScores]) -> list[str]:
    found, others = plans[0], plans[1:]
    gaps = {other.title: difference(found, other) for other in others}
    rows = [[title, *_gap(gap), gap.count] for title, gap in gaps.items()]
    best = best_plan(plans)
    if not others or best is None:
        return []
    unsure = [title for title, gap in gaps.items() if not (gap.low > 0 or gap.high < 0)]
    first = best is found
    text = f"The best mean is that of the {best.title}. " if first else (
        f"The best mean is not the found design's but that of {best.title}. ")  # fmt: skip
    if unsure:
        whose = "Its difference" if first else "The found design's difference"
        text += f"{whose} to {listed(unsure)} is within noise."
    return [
        "The found design minus each other plan: mean over tasks, paired by seed, with the 95% t "
        "interval over seeds for each plan separately. The intervals do not cover other rows or "
        "tasks.",
        "",
        *table(["compared with", "difference", "result", "seeds"], rows),
        text.rstrip(),
        "",
    ]


def gates(means: Mapping[str, Mapping[str, float]], kept: Mapping[str, str]) -> list[str]:
    """Mean gates of each group, and the methods that it kept."""
    letters = list(dict.fromkeys(letter for gates in means.values() for letter in gates))
    rows = [
        [group, *(number(gates.get(k, nan), 3) for k in letters), kept.get(group, "")]
        for group, gates in means.items()
    ]
    return [
        "One run had every method in every group, gated. The table shows the mean gates over the "
        "held-out rows, from 0 (closed) to 1 (open), and the methods that were kept:",
        "",
        *table(["group", *letters, "kept"], rows),
    ]


def listed(names: Sequence[str]) -> str:
    """``"a, b and c"``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def number(value: float, digits: int) -> str:
    """A number with ``digits`` decimals; a dash if it is not finite."""
    return f"{value:.{digits}f}" if isfinite(value) else UNKNOWN


def spread(e: Estimate) -> str:
    """``"71.20 ± 0.40"``."""
    if not e.count:
        return UNKNOWN
    return f"{e.mean:.2f}" + (f" ± {e.sd:.2f}" if isfinite(e.sd) else "")


def _gap(e: Estimate) -> tuple[str, str]:
    if not isfinite(e.low):
        return number(e.mean, 2), "unknown: too few seeds"
    result = "ahead" if e.low > 0 else "behind" if e.high < 0 else "within noise"
    return _interval(e.mean, e.low, e.high), result


def _behind(s: ArmStats) -> str:
    if not isfinite(s.behind) or s.behind == s.low == s.high == 0:
        return UNKNOWN
    return _interval(s.behind, s.low, s.high)


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:.2f} ({number(low, 2)} to {number(high, 2)})"


def _status(
    s: ArmStats, selection: Selection, chosen: str | None, dropped: Mapping[str, int]
) -> str:
    if s.arm == chosen:
        return "**chosen**"
    if 2 * s.diverged > s.blocks:
        return "diverged too often"
    if s.arm in dropped:
        return f"dropped after {dropped[s.arm]}"
    if chosen is None:
        return "still in"
    if s.arm == selection.result().winner:
        return "beaten on new replicates"
    return "no clear difference" if isinstance(selection, Race) else "not better"


def _noise(selection: Selection) -> str:
    """The options whose interval does not exclude a difference of 0 to the best one."""
    close = [s.arm for s in selection.stats() if s.low <= 0 <= s.high and s.low != s.high]
    if not close:
        return " Its interval against every other option is above zero."
    return f" Its difference to {listed(close)} is within noise."


def _tie(selection: Selection) -> str:
    return f"{selection.rules.tie:g} points" if isinstance(selection, Race) else "nothing"
