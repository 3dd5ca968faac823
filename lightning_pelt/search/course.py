"""The course of a search: from the outcomes there are to the cells that are wanted next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from lightning_pelt.design_space import Design
from lightning_pelt.search.cell import Cell, Outcome
from lightning_pelt.search.challenge import Challenge
from lightning_pelt.search.contest import Contest, Score
from lightning_pelt.search.finals import Finals
from lightning_pelt.search.space import START, Space, Stage

Outcomes = Mapping[str, Outcome]
SWAPS = "swaps"
FRESH = 1_000_000  # blocks from here on are no race's: a million for each stage


@dataclass
class Record:
    """What became of a stage.

    Attributes:
        stage: the question and its options.
        contest: between the options.
        fresh: the winner against the runner-up on fresh blocks; None where there is none to beat.
        chosen: None as long as it is not settled.
        cells: every cell of the stage by its key.
        reused: how many of them an earlier stage had wanted already.
    """

    stage: Stage
    contest: Contest
    fresh: Challenge | None = None
    chosen: str | None = None
    cells: dict[str, Cell] = field(default_factory=dict)
    reused: int = 0


@dataclass
class Walk:
    """How far a search has come.

    Attributes:
        records: of the stages so far; all but the last are settled.
        settled: what each stage chose, by its name.
        found: the design, once every stage is settled; at the search's budget.
        finals: the found design against others at the final budget; None until then.
        gated: with gates as the searcher, the cells of the run that has every method.
        readings: how far each method's gates are open there, by group.
        wanted: cells without which it cannot go on; none of them has an outcome. Empty: it is over.
    """

    records: list[Record] = field(default_factory=list)
    settled: dict[str, str] = field(default_factory=dict)
    found: Design | None = None
    finals: Finals | None = None
    gated: list[Cell] = field(default_factory=list)
    readings: dict[str, dict[str, float]] = field(default_factory=dict)
    wanted: list[Cell] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return not self.wanted and self.finals is not None


@dataclass
class Course:
    """Greedy search, stage by stage (Chen et al., 2023; specification, sections 1 and 3).

    There is no state but the outcomes: a walk begins at the beginning each time and goes as far as
    they carry it. A search that was killed goes on by being walked again.

    Args:
        space: what is searched.
        tasks: names of the tasks; the score of a design is the mean over them.
        contest: makes the contest of a stage from its options, simplest first.
        baseline: makes that of the first stage, S0, which has one option: random designs.
        finals: makes the comparison at the end from the found design.
        fresh: blocks on which a winner meets its runner-up again, and the found design its
            variants.
        alpha: of the tests there.
    """

    space: Space
    tasks: Sequence[str]
    contest: Callable[[Sequence[str]], Contest]
    baseline: Callable[[Sequence[str]], Contest]
    finals: Callable[[Design], Finals]
    fresh: int = 8
    alpha: float = 0.05
    _designs: dict[tuple[str, tuple[str, ...], int], dict[str, Design]] = field(
        default_factory=dict, init=False, repr=False
    )
    _made: dict[tuple[str, tuple[str, ...], int, str], list[Cell]] = field(
        default_factory=dict, init=False, repr=False
    )
    _plans: dict[str, tuple[Mapping[str, object], int]] = field(
        default_factory=dict, init=False, repr=False
    )
    _stages: dict[tuple[str, ...], Stage | None] = field(
        default_factory=dict, init=False, repr=False
    )

    def walk(self, outcomes: Outcomes) -> Walk:
        """As far as ``outcomes`` carry it.

        Args:
            outcomes: by the key of their cell.

        Raises:
            ValueError: no design of a stage can meet the budget.
        """
        walk = Walk()
        steps = enumerate([*self.space.stages, SWAPS])
        if not all(self._step(walk, name, number, outcomes) for number, name in steps):
            return walk
        walk.found = self.space.made(walk.settled)
        walk.finals = self.finals(walk.found)
        walk.wanted = [cell for cell in walk.finals.cells if cell.key not in outcomes]
        return walk

    def _step(self, walk: Walk, name: str, number: int, outcomes: Outcomes) -> bool:
        """Settle a stage. False if it wants cells first."""
        stage = self._swaps(walk) if name == SWAPS else self._stage(name, walk.settled)
        if stage is None:
            return True
        fresh_from = FRESH * (number + 1)
        if name == SWAPS:
            contest: Contest = self._challenge(stage.options, fresh_from)
        else:
            contest = (self.baseline if name == START else self.contest)(stage.options)
        record = Record(stage, contest)
        walk.records.append(record)
        if not self._hold(contest, walk, outcomes):
            return False
        winner, rival = contest.result().winner, contest.result().runner_up
        if rival is not None and name != SWAPS:
            record.fresh = self._challenge((winner, rival), fresh_from)
            if not self._hold(record.fresh, walk, outcomes):
                return False
            winner = record.fresh.result().winner
        record.chosen = winner
        if name == SWAPS:
            walk.settled |= _swap(winner)
        elif name != START:
            walk.settled[name] = winner
        return True

    def _hold(self, contest: Contest, walk: Walk, outcomes: Outcomes) -> bool:
        """Tell a contest what there is, as far as it goes. False if it wants cells."""
        while asked := contest.wanted():
            for arm, block in asked:
                cells = self._cells(walk, arm, block)
                if missing := [cell for cell in cells if cell.key not in outcomes]:
                    walk.wanted += missing
                else:
                    contest.tell(arm, block, _mean([outcomes[c.key].score for c in cells]))
            if walk.wanted:
                # Two options can come to one plan, which then is one cell, named after the first.
                cells_of = walk.records[-1].cells
                walk.wanted = [cells_of[key] for key in dict.fromkeys(c.key for c in walk.wanted)]
                return False
        return True

    def _cells(self, walk: Walk, arm: str, block: int) -> list[Cell]:
        record = walk.records[-1]
        stage = record.stage
        key = (stage.name, (*walk.settled.values(), *stage.options), block)
        if key not in self._designs:
            if stage.name == SWAPS:
                made = {o: self.space.made({**walk.settled, **_swap(o)}) for o in stage.options}
                self._designs[key] = made
            else:
                self._designs[key] = self.space.designs(stage, walk.settled, block)
        if (mine := (*key, arm)) not in self._made:
            plan, parameters = self._plan(self._designs[key][arm])
            seed, label = self.space.block_seed(block), f"{stage.name}: {arm}, block {block}"
            self._made[mine] = [
                Cell(plan, task, seed, "holdout", parameters, label) for task in self.tasks
            ]
        cells = self._made[mine]
        for cell in cells:
            if cell.key not in record.cells:
                record.cells[cell.key] = cell
                record.reused += any(cell.key in earlier.cells for earlier in walk.records[:-1])
        return cells

    def _plan(self, design: Design) -> tuple[Mapping[str, object], int]:
        name = repr(design)
        if name not in self._plans:
            solution = design.solution(self.space.anatomy)
            self._plans[name] = solution.plan().to_config(), solution.total
        return self._plans[name]

    def _stage(self, name: str, settled: Mapping[str, str]) -> Stage | None:
        key = (name, *settled.values())
        if key not in self._stages:
            self._stages[key] = self.space.stage(name, settled)
        return self._stages[key]

    def _swaps(self, walk: Walk) -> Stage | None:
        """The found design, and its variants with the runner-up of one stage each.

        Greedy choices were made before the later ones were known, so each is asked again.
        """
        options, left_out = ["as found"], {}
        for record in walk.records[1:]:
            result = record.contest.result()
            others = [arm for arm in (result.winner, result.runner_up) if arm != record.chosen]
            for rival in filter(None, others):
                option = f"{record.stage.name}: {rival}"
                components = {**walk.settled, **_swap(option)}
                missing = [n for n in self.space.needed(components) if n not in components]
                reason = (
                    f"{missing[0]} was never settled"
                    if missing
                    else self.space.reason(self.space.made(components))
                )
                if reason is None:
                    options.append(option)
                else:
                    left_out[option] = reason
        return Stage(SWAPS, tuple(options), left_out) if len(options) > 1 else None

    def _challenge(self, arms: Sequence[str], start: int) -> Challenge:
        return Challenge(arms[0], arms[1:], blocks=self.fresh, alpha=self.alpha, start=start)


def _swap(option: str) -> dict[str, str]:
    """The component that an option of the swaps replaces: ``"grouping: spindle"``."""
    name, colon, rival = option.partition(": ")
    return {name: rival} if colon else {}


def _mean(scores: Sequence[Score]) -> Score:
    """Over tasks; without a number if one of them has none."""
    known = [score for score in scores if score is not None]
    return fmean(known) if len(known) == len(scores) else None
