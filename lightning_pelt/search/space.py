"""The space of a search: its stages, what each may choose, and random designs of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, combinations, islice
from typing import Any, get_args

import numpy as np

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.design_space import PATTERNS, Choice, Design, Solution, choices, rivals
from lightning_pelt.design_space.budget import Allocation, Over
from lightning_pelt.design_space.costs import STRATEGIES
from lightning_pelt.design_space.patterns import Stacks
from lightning_pelt.errors import unknown

# Of choices that come out alike the simpler one is taken: the one further to the left.
SIMPLEST = ("uniform", "spindle", "bottleneck", "increasing", "decreasing")
ATTEMPTS = 2000  # draws of one block, in search of one whose designs can all meet the budget
TRIALS = 100  # draws that show which options of a stage can meet it
ENOUGH = 3  # of them must let all options of a stage meet it, or blocks would find no design
START = "start"


@dataclass(frozen=True)
class Stage:
    """A question of the search.

    Attributes:
        name: ``start``, ``grouping``, ``allocation``, ``groups``, ``group 1``, ...
        options: simplest first. Of ``start`` there is one, which is no choice at all.
        left_out: options that no or hardly any random design of this stage can have, with the
            reason.
    """

    name: str
    options: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """Designs of one budget on one model (Chen et al., 2023; specification, section 1).

    A *block* of the search is one random draw of every component, the same in all stages: what the
    stage asks about is replaced by its option, what is settled by what it was settled to. So all
    options of a stage share what they do not decide, and a fit of an earlier stage that happens to
    be wanted again is not done again.

    Args:
        anatomy: of the model.
        budget: see :class:`lightning_pelt.Design`.
        groups: number of groups of blocks.
        stacks: ``concat`` or ``per_stack``.
        over: what an allocation counts, ``blocks`` or ``groups``.
        patterns: groupings to choose from.
        subsets: sets of methods that a group may have, as letters; by default all 15 of A, P, B, L.
        seed: of the draws.

    Raises:
        ValueError: an unknown pattern or letter, patterns that are one and the same grouping on
            this model, fewer than two sets of methods, or fewer blocks than groups.
    """

    anatomy: Anatomy
    budget: float = 0.005
    groups: int = 4
    stacks: Stacks = "concat"
    over: Over = "blocks"
    patterns: Sequence[str] = PATTERNS
    subsets: Sequence[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.sets) < 2:
            raise ValueError(f"subsets={list(self.sets)}: a search needs two or more")
        _ = self.groupings  # refuses, before anything is trained, what cannot be told apart

    @cached_property
    def groupings(self) -> dict[str, Choice]:
        """The groupings that differ on this model, by the name of their simplest pattern."""
        depths = [len(stack.blocks) for stack in self.anatomy.stacks]
        depth = depths if self.stacks == "per_stack" else sum(depths)
        order = sorted(self.patterns, key=lambda p: SIMPLEST.index(p) if p in SIMPLEST else -1)
        found = choices(depth, self.groups, order)
        if len(self.patterns) != 1:
            found = rivals(order, depth, self.groups)
        return {choice.names[0]: choice for choice in found}

    @property
    def stages(self) -> list[str]:
        """Names of the stages in their order, the paper's S0 to S4."""
        return [START, "grouping", "allocation", "groups", *self._groups]

    def stage(self, name: str, settled: Mapping[str, str]) -> Stage | None:
        """What a stage asks, after what earlier stages settled; None if nothing is left to ask.

        Raises:
            ValueError: no option of the stage can meet the budget.
        """
        if name == START:
            return Stage(name, ("anything",))
        if name in self._groups and name not in self.needed(settled):
            return None
        draws = [*islice(self._draws(0), TRIALS)]
        reasons = {
            option: [self.reason(self.made({**draw, **settled, name: option})) for draw in draws]
            for option in self._options(name)
        }
        left_out: dict[str, str] = {}
        # Options share their draws: the one that fits least goes, until enough draws fit the rest.
        while len(reasons) > 1 and _fitting(reasons) < ENOUGH:
            worst = max(reversed(reasons), key=lambda option: sum(map(bool, reasons[option])))
            missed = [*filter(None, reasons.pop(worst))]
            rare = f" (in {len(missed)} of {TRIALS} random designs)" if len(missed) < TRIALS else ""
            left_out[worst] = missed[-1] + rare
        if not _fitting(reasons):
            reason = reasons.popitem()[1][-1]
            raise ValueError(f"no {name} can meet budget={self.budget}: {reason}")
        return Stage(name, tuple(reasons), left_out)

    def designs(self, stage: Stage, settled: Mapping[str, str], block: int) -> dict[str, Design]:
        """The design that stands for each option in a block: the rest is settled, or random.

        Raises:
            ValueError: none of many draws gives every option of the stage a design that can meet
                the budget.
        """
        if stage.name == START:
            return {option: self._anything(block) for option in stage.options}
        for draw in self._draws(block):
            designs = {o: self.made({**draw, **settled, stage.name: o}) for o in stage.options}
            if all(self.reason(design) is None for design in designs.values()):
                return designs
        raise ValueError(
            f"stage {stage.name!r}: of {ATTEMPTS} random designs none lets all of "
            f"{', '.join(stage.options)} meet budget={self.budget}; narrow `subsets` or `patterns`"
        )

    def made(self, components: Mapping[str, str]) -> Design:
        """The design of components by stage: ``grouping``, ``allocation``, ``groups``, ..."""
        tuned = self.needed(components)
        letters = [components[name] if name in tuned else "" for name in self._groups]
        return Design(
            letters,
            budget=self.budget,
            pattern=components["grouping"],  # type: ignore[arg-type]
            allocation=components["allocation"],  # type: ignore[arg-type]
            over=self.over,
            stacks=self.stacks,
        )

    def needed(self, components: Mapping[str, str]) -> tuple[str, ...]:
        """The stages of the groups that ``components`` tune."""
        return tuple(f"group {i}" for i in _numbers(components["groups"]))

    def reason(self, design: Design) -> str | None:
        """Why a design cannot meet its budget; None if it can."""
        try:
            solution: Solution = design.nearest(self.anatomy)
        except ValueError as error:
            return str(error)
        if solution.within:
            return None
        return f"comes to {solution.total:,} parameters where {solution.target:,} are wanted"

    def block_seed(self, block: int) -> int:
        """Of the data's order and of new weights: the same for all designs of a block."""
        return int(np.random.SeedSequence([self.seed, block]).generate_state(1)[0] >> 1)

    @property
    def _groups(self) -> tuple[str, ...]:
        return tuple(f"group {i + 1}" for i in range(self.groups))

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """The sets of methods that a group may have, the smallest first."""
        if self.subsets is None:
            every = range(1, len(STRATEGIES) + 1)
            return tuple("".join(c) for n in every for c in combinations(STRATEGIES, n))
        for letter in chain(*self.subsets):
            if letter not in STRATEGIES:
                raise unknown("strategy", letter, STRATEGIES)
        ordered = ("".join(k for k in STRATEGIES if k in subset) for subset in self.subsets)
        return tuple(sorted(filter(None, dict.fromkeys(ordered)), key=len))

    def _options(self, stage: str) -> list[str]:
        """Simplest first."""
        if stage == "grouping":
            return [*self.groupings]
        if stage == "allocation":
            return sorted(get_args(Allocation), key=SIMPLEST.index)
        if stage == "groups":
            return _selections(self.groups)
        return list(self.sets)

    def _draws(self, block: int) -> Iterator[dict[str, str]]:
        """Random components of a block, again and again, always the same ones."""
        random = np.random.default_rng([self.seed, block, 1])
        for _ in range(ATTEMPTS):
            yield {
                name: str(random.choice(self._options(name)))
                for name in self.stages
                if name != START
            }

    def _anything(self, block: int) -> Design:
        """A design of S0: every block on its own, tuned with probability one half.

        Random are the methods of each block, the allocation, and how much of the budget is spent,
        between a tenth and all of it.
        """
        random = np.random.default_rng([self.seed, block, 0])
        depth = sum(len(stack.blocks) for stack in self.anatomy.stacks)
        target = self.made(next(self._draws(0))).target(self.anatomy)
        for _ in range(ATTEMPTS):
            tuned = random.random(depth) < 0.5
            letters = [str(random.choice(self.sets)) if on else "" for on in tuned]
            arguments: dict[str, Any] = {
                "budget": max(1, round(target * random.uniform(0.1, 1.0))),
                "pattern": "uniform",
                "allocation": str(random.choice(get_args(Allocation))),
            }
            if any(letters):
                design = Design(letters, **arguments)
                if self.reason(design) is None:
                    return design
        raise ValueError(f"no random design without groups can meet budget={self.budget}")


def _fitting(reasons: Mapping[str, Sequence[str | None]]) -> int:
    """How many draws let all options meet the budget, from the reasons why they cannot."""
    return sum(not any(draw) for draw in zip(*reasons.values(), strict=True))


def _selections(groups: int) -> list[str]:
    """Which groups are tuned: each alone, the halves, all but an end, all. Nine of four groups."""
    every = tuple(range(1, groups + 1))
    half = groups // 2
    found = [*((i,) for i in every), every[:half], every[half:], every[:-1], every[1:], every]
    named = dict.fromkeys("+".join(map(str, one)) for one in found if one)
    return sorted(named, key=lambda name: len(_numbers(name)))


def _numbers(selection: str) -> tuple[int, ...]:
    return tuple(int(part) for part in selection.split("+"))
