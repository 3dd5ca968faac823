"""Chapters of a search's report: from its numbers to plain sentences and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

from lightning_pelt.search.brute_force import BruteForce
from lightning_pelt.search.challenge import Challenge
from lightning_pelt.search.contest import Contest, Standing
from lightning_pelt.search.course import SWAPS, Record
from lightning_pelt.search.racing import Race
from lightning_pelt.search.space import START
from lightning_pelt.search.summary import (
    Estimate,
    Scored,
    estimate,
    first_drops,
    paired,
    rank_table,
)

UNKNOWN = "-"
QUESTIONS = {
    START: "S0: designs without groups",
    "grouping": "S1: how many blocks each group holds",
    "allocation": "S2: how the budget is shared",
    "groups": "S3: which groups are tuned",
    SWAPS: "The found design against variants of one choice each",
}
BASELINE = (
    "S0 is weak by construction: about half of the blocks are untuned, and how much of the budget "
    "is spent is random. What S1 gains over it mixes grouping with sharing, so options of S1 are "
    "to be compared with each other only."
)
PAIRED = (
    "*behind* is the leader's score minus the option's, on average over the blocks that both "
    "finished, and *mean* is over the option's own blocks. An option was dropped for what it was "
    "behind the leader of that moment, who may have lost the lead since."
)
UNPAIRED = "every option has blocks of its own, and *behind* is the difference of two means."


def question(stage: str) -> str:
    """Title of a stage: ``"S4: methods of group 2"``."""
    return QUESTIONS.get(stage, f"S4: methods of {stage}")


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, rest: str = "---:"
) -> list[str]:
    """A Markdown table; all columns but the first are to the right, or as ``rest`` says."""
    lines = [header, ["---", *[rest] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines] + [""]


def stage(record: Record) -> list[str]:
    """Everything about a stage but its picture."""
    contest, chosen = record.contest, record.chosen
    lines = [BASELINE, ""] if record.stage.name == START else []
    lines += standings(contest, chosen)
    lines += [settled(record), ""] if contest.over else ["Not settled yet.", ""]
    if record.fresh is not None:
        lines += [again(record), ""]
    if record.stage.left_out:
        lines += ["Left out, since no design of this stage, or hardly any, can have them:", ""]
        lines += [f"- {option}: {why}" for option, why in record.stage.left_out.items()] + [""]
    return lines


def reading(records: Sequence[Record]) -> str:
    """How to read the tables of the stages."""
    unpaired = any(isinstance(record.contest, BruteForce) for record in records[1:])
    return f"How to read the tables: {UNPAIRED if unpaired else PAIRED}"


def standings(contest: Contest, chosen: str | None) -> list[str]:
    """A table of a contest's options, the chosen one first, then by how far they are behind."""
    out = first_drops(contest.looks)
    every = sorted(
        contest.standings(),
        key=lambda s: (s.arm != chosen, s.arm in out, s.behind if isfinite(s.behind) else 1e9),
    )
    rows = [
        [f"**{s.arm}**" if s.arm == chosen else s.arm, s.blocks, number(s.mean, 2), _behind(s),
         _verdict(s, contest, chosen, out), s.diverged]
        for s in every
    ]  # fmt: skip
    behind = f"behind ({confidence(contest):.3g}% interval)"
    header = ["option", "blocks", "mean", behind, "verdict", "diverged"]
    return table(header, rows)


def confidence(contest: Contest) -> float:
    """Of the intervals in a contest's standings, in percent: that of its one-sided tests."""
    if isinstance(contest, Challenge):
        return 100 * (1 - 2 * contest.alpha)
    return 100 * (1 - 2 * contest.rules.level) if isinstance(contest, Race) else 95.0


def settled(record: Record) -> str:
    """How the contest of a stage ended, and how sure that is."""
    result, contest = record.contest.result(), record.contest
    winner, tied = result.winner, listed(result.tied)
    if result.verdict == "only":
        start = record.stage.name == START
        return "The baseline: no choice." if start else f"There was one option, **{winner}**."
    if isinstance(contest, BruteForce):
        best = f"**{winner}** has the best mean of {contest.designs} designs each."
        return best + _noise(contest)
    if isinstance(contest, Challenge):
        if winner == contest.incumbent:
            return "No variant was shown to be better, so the found design stands."
        return f"**{winner}** was shown to be better, and takes the place of what was found."
    if result.verdict == "winner":
        most = max(s.blocks for s in contest.standings())
        return f"**{winner}** won: all others were dropped within {most} blocks."
    if result.verdict == "tie":
        return (
            f"A tie: {tied} were shown to be within {_tie(contest)} of the leader. "
            f"**{winner}** won as the simplest of them."
        )
    return (
        f"The blocks ran out before anything was shown between {tied}: their differences are "
        f"within noise. **{winner}** won by its mean alone."
    )


def again(record: Record) -> str:
    """The winner and its runner-up once more, on fresh blocks."""
    assert record.fresh is not None
    winner, rival = record.fresh.arms[0], record.fresh.arms[1]
    now = {s.arm: s for s in record.fresh.standings()}
    if not record.fresh.over:
        return f"{winner} and {rival} are now compared again on fresh blocks."
    gap = now[rival]
    text = (
        f"Once more on {gap.blocks} fresh blocks, which nothing was chosen by: {winner} "
        f"{number(now[winner].mean, 2)}, {rival} {number(gap.mean, 2)}, a difference of "
        f"{_interval(gap.behind, gap.low, gap.high)}, a {confidence(record.fresh):.3g}% interval. "
    )
    if record.chosen != winner:
        return text + f"So **{record.chosen}** takes its place."
    if gap.low > 0:
        return text + "That confirms the choice."
    return text + "That is within noise; the choice stands, but is not confirmed."


def finals(plans: Sequence[Scored]) -> list[str]:
    """The comparison at the end: scores with ranks, and the found plan against each rival."""
    ranks, tasks = rank_table(plans), list(plans[0].scores)
    rows = []
    for plan in plans:
        cells = [
            f"{spread(estimate(plan.scores[task]))} (rank {ranks[task][plan.name]:g})"
            for task in tasks
        ]
        share = f"{plan.parameters / plan.target:.0%}"
        mark = f", **{plan.mark}**" if plan.mark else ""
        mean, rank = spread(estimate(plan.overall)), f"{ranks[''][plan.name]:.2f}"
        rows.append([plan.title, f"{plan.parameters:,} ({share}{mark})", *cells, mean, rank])
    header = ["plan", "parameters (of the budget)", *tasks, "mean over tasks", "mean rank"]
    seeds = max(len(scores) for scores in plans[0].scores.values())
    lines = [
        f"Points on the official dev split, which nothing else has touched: mean ± standard "
        f"deviation over {seeds} seeds, each plan trained on all training rows.",
        "",
        *table(header, rows),
    ]
    if missing := sum(score is None for plan in plans for s in plan.scores.values() for score in s):
        lines += [f"{missing} of the fits diverged or are not done; they are in no mean.", ""]
    return lines + _against(plans)


def _against(plans: Sequence[Scored]) -> list[str]:
    found, rivals = plans[0], plans[1:]
    gaps = {rival.title: paired(found, rival) for rival in rivals}
    rows = [[title, *_gap(gap), gap.count] for title, gap in gaps.items()]
    means = {plan.title: estimate(plan.overall).mean for plan in plans}
    best = max((t for t in means if isfinite(means[t])), key=lambda t: means[t], default=None)
    if not rivals or best is None:
        return []
    unsure = [title for title, gap in gaps.items() if not (gap.low > 0 or gap.high < 0)]
    text = f"The best mean is that of the {best}. " if best == found.title else (
        f"The best mean is not the found design's but that of {best}. ")  # fmt: skip
    if unsure:
        text += f"Its difference to {listed(unsure)} is within noise." if best == found.title else (
            f"The found design's difference to {listed(unsure)} is within noise.")  # fmt: skip
    return [
        "The found design minus each rival: of the mean over tasks, seed by seed, with the 95% t "
        "interval over seeds, each by itself. It says nothing about other rows or tasks.",
        "",
        *table(["rival", "difference", "reads", "seeds"], rows),
        text.rstrip(),
        "",
    ]


def gates(readings: Mapping[str, Mapping[str, float]], kept: Mapping[str, str]) -> list[str]:
    """Mean gates of each group, and the methods that stayed."""
    letters = list(dict.fromkeys(letter for gates in readings.values() for letter in gates))
    rows = [
        [group, *(number(gates.get(k, float("nan")), 3) for k in letters), kept.get(group, "")]
        for group, gates in readings.items()
    ]
    return [
        "One run had every method in every group, gated. The mean gates over held-out rows, from 0 "
        "closed to 1 open, and the methods that stayed:",
        "",
        *table(["group", *letters, "kept"], rows),
    ]


def listed(names: Sequence[str]) -> str:
    """``"a, b and c"``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def number(value: float, digits: int) -> str:
    """A dash for what is not known."""
    return f"{value:.{digits}f}" if isfinite(value) else UNKNOWN


def spread(e: Estimate) -> str:
    """``"71.2 ± 0.4"``."""
    if not e.count:
        return UNKNOWN
    return f"{e.mean:.2f}" + (f" ± {e.sd:.2f}" if isfinite(e.sd) else "")


def _gap(e: Estimate) -> tuple[str, str]:
    if not isfinite(e.low):
        return number(e.mean, 2), "unknown: too few seeds"
    reads = "ahead" if e.low > 0 else "behind" if e.high < 0 else "within noise"
    return _interval(e.mean, e.low, e.high), reads


def _behind(s: Standing) -> str:
    if not isfinite(s.behind) or s.behind == s.low == s.high == 0:
        return UNKNOWN
    return _interval(s.behind, s.low, s.high)


def _interval(middle: float, low: float, high: float) -> str:
    return f"{middle:.2f} ({number(low, 2)} to {number(high, 2)})"


def _verdict(s: Standing, contest: Contest, chosen: str | None, out: Mapping[str, int]) -> str:
    if s.arm == chosen:
        return "**chosen**"
    if 2 * s.diverged > s.blocks:
        return "diverged too often"
    if s.arm in out:
        return f"dropped after {out[s.arm]}"
    if chosen is None:
        return "still in"
    if s.arm == contest.result().winner:
        return "beaten on fresh blocks"
    return "not dropped" if isinstance(contest, Race) else "not better"


def _noise(contest: Contest) -> str:
    """Which options the intervals do not tell from the best one."""
    close = [s.arm for s in contest.standings() if s.low <= 0 <= s.high and s.low != s.high]
    if not close:
        return " Its interval against every other option is above zero."
    return f" Its difference to {listed(close)} is within noise."


def _tie(contest: Contest) -> str:
    return f"{contest.rules.tie:g} points" if isinstance(contest, Race) else "nothing"
