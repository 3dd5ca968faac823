"""Search space: the stages of a search, their options, and random designs of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, combinations, islice
from typing import Any, get_args

import numpy as np

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.plans.design_space import (
    PATTERNS,
    Design,
    Grouping,
    Solution,
    distinct_groupings,
    groupings_to_compare,
)
from lightning_pelt.plans.design_space.allocation import Allocation, Over
from lightning_pelt.plans.design_space.patterns import Stacks
from lightning_pelt.plans.design_space.strategies import STRATEGIES
from lightning_pelt.utils.errors import unknown

# Of patterns with the same sizes on a model, the one further to the left gives the name.
SIMPLEST = ("uniform", "spindle", "bottleneck", "increasing", "decreasing")
ATTEMPTS = 2000  # draws of a block until the designs of all options can meet the budget
TRIALS = 100  # draws that show which options of a stage can meet the budget
ENOUGH = 3  # of these draws must let all options meet it, so that blocks find designs
START = "start"


@dataclass(frozen=True)
class Stage:
    """A choice that the search makes.

    Attributes:
        name: ``start``, ``grouping``, ``allocation``, ``groups``, ``group 1``, ...
        options: simplest first; ``start`` has only one.
        left_out: options with which few or no random designs can meet the budget, and the reason.
    """

    name: str
    options: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """Designs with one budget on one model (Chen et al., 2023).

    A *block* of the search, in the sense of a randomised block design, is one random draw of every
    component. It is the same in all stages: the component that the stage decides is replaced by the
    stage's option, and settled components by the settled value. So the designs of a stage differ
    only in the option, and a fit that an earlier stage has done is reused.

    Args:
        anatomy: of the model.
        budget: see :class:`lightning_pelt.Design`.
        groups: number of groups of transformer blocks.
        stacks: ``concat`` or ``per_stack``.
        over: what an allocation counts, ``blocks`` or ``groups``.
        patterns: groupings to choose from.
        subsets: sets of methods that a group may have, as letters; by default all 15 of A, P, B, L.
        seed: seed of the draws.

    Raises:
        ValueError: a pattern or letter is unknown, all patterns give the same grouping on this
            model, there are fewer than two sets of methods, or fewer blocks than groups.

    Example:
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_bert
        >>> anatomy = examine(tiny_bert())  # two blocks; each is a group
        >>> space = Space(anatomy, budget=6_000, groups=2, patterns=["uniform"])
        >>> stage = space.stage("allocation", settled={"grouping": "uniform"})
        >>> stage.options
        ('uniform', 'increasing', 'decreasing')
        >>> designs = space.designs(stage, settled={"grouping": "uniform"}, block=0)
        >>> designs["uniform"].strategies == designs["increasing"].strategies
        True
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
        _ = self.groupings  # raises before training if the patterns do not differ

    @cached_property
    def groupings(self) -> dict[str, Grouping]:
        """The distinct groupings on this model, by the name of their simplest pattern."""
        depths = [len(stack.blocks) for stack in self.anatomy.stacks]
        depth = depths if self.stacks == "per_stack" else sum(depths)
        order = sorted(self.patterns, key=lambda p: SIMPLEST.index(p) if p in SIMPLEST else -1)
        found = distinct_groupings(depth, self.groups, order)
        if len(self.patterns) != 1:
            found = groupings_to_compare(order, depth, self.groups)
        return {grouping.names[0]: grouping for grouping in found}

    @property
    def stages(self) -> list[str]:
        """Names of the stages in order: S0 to S4 of the paper."""
        return [START, "grouping", "allocation", "groups", *self._groups]

    def stage(self, name: str, settled: Mapping[str, str]) -> Stage | None:
        """A stage, given what earlier stages settled; None if it has nothing to decide.

        Raises:
            ValueError: no option of the stage can meet the budget.
        """
        if name == START:
            return Stage(name, ("anything",))
        if name in self._groups and name not in self.tuned_groups(settled):
            return None
        draws = [*islice(self._draws(0), TRIALS)]
        reasons = {
            option: [self.misfit(self.design({**draw, **settled, name: option})) for draw in draws]
            for option in self._options(name)
        }
        left_out: dict[str, str] = {}
        # Options share their draws: leave out the worst until enough draws fit all others.
        while len(reasons) > 1 and _fitting(reasons) < ENOUGH:
            worst = max(reversed(reasons), key=lambda option: sum(map(bool, reasons[option])))
            missed = [*filter(None, reasons.pop(worst))]
            rare = f" (in {len(missed)} of {TRIALS} random designs)" if len(missed) < TRIALS else ""
            left_out[worst] = missed[-1] + rare
        if not _fitting(reasons):
            reason = reasons.popitem()[1][-1]
            raise ValueError(
                f"no {name} can meet budget={self.budget} ({reason}): give another budget"
            )
        return Stage(name, tuple(reasons), left_out)

    def designs(self, stage: Stage, settled: Mapping[str, str], block: int) -> dict[str, Design]:
        """The design of each option in a block; other components are settled or random.

        Raises:
            ValueError: in none of many draws can the designs of all options meet the budget.
        """
        if stage.name == START:
            return {option: self._ungrouped(block) for option in stage.options}
        for draw in self._draws(block):
            designs = {o: self.design({**draw, **settled, stage.name: o}) for o in stage.options}
            if all(self.misfit(design) is None for design in designs.values()):
                return designs
        raise ValueError(
            f"stage {stage.name!r}: in none of {ATTEMPTS} random draws can all of "
            f"{', '.join(stage.options)} meet budget={self.budget}; narrow `subsets` or `patterns`"
        )

    def design(self, components: Mapping[str, str]) -> Design:
        """The design with the components given by stage: ``grouping``, ``allocation``, ..."""
        tuned = self.tuned_groups(components)
        letters = [components[name] if name in tuned else "" for name in self._groups]
        return Design(
            letters,
            budget=self.budget,
            pattern=components["grouping"],  # type: ignore[arg-type]
            allocation=components["allocation"],  # type: ignore[arg-type]
            over=self.over,
            stacks=self.stacks,
        )

    def tuned_groups(self, components: Mapping[str, str]) -> tuple[str, ...]:
        """The stages of the groups that the component ``groups`` tunes: ``group 1``, ..."""
        return tuple(f"group {i}" for i in _numbers(components["groups"]))

    def misfit(self, design: Design) -> str | None:
        """The reason why a design cannot meet its budget; None if it can."""
        try:
            solution: Solution = design.nearest(self.anatomy)
        except ValueError as error:
            return str(error)
        if solution.within:
            return None
        return f"{solution.total:,} parameters instead of {solution.target:,}"

    def block_seed(self, block: int) -> int:
        """Seed of the data order and of new weights, the same for all designs of a block."""
        return int(np.random.SeedSequence([self.seed, block]).generate_state(1)[0] >> 1)

    @property
    def _groups(self) -> tuple[str, ...]:
        return tuple(f"group {i + 1}" for i in range(self.groups))

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """The sets of methods that a group may have, smallest first."""
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
        """Random components of a block, draw after draw; the sequence is fixed by the seed."""
        random = np.random.default_rng([self.seed, block, 1])
        for _ in range(ATTEMPTS):
            yield {
                name: str(random.choice(self._options(name)))
                for name in self.stages
                if name != START
            }

    def _ungrouped(self, block: int) -> Design:
        """A design of S0, without groups: each transformer block is tuned with probability 1/2.

        The methods of each block, the allocation and the spent share of the budget, between a tenth
        and all of it, are random.
        """
        random = np.random.default_rng([self.seed, block, 0])
        depth = sum(len(stack.blocks) for stack in self.anatomy.stacks)
        target = self.design(next(self._draws(0))).target(self.anatomy)
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
                if self.misfit(design) is None:
                    return design
        raise ValueError(f"no random design without groups can meet budget={self.budget}")


def _fitting(reasons: Mapping[str, Sequence[str | None]]) -> int:
    """Number of draws in which all options can meet the budget."""
    return sum(not any(draw) for draw in zip(*reasons.values(), strict=True))


def _selections(groups: int) -> list[str]:
    """Selections of groups to tune: single ones, halves, all but an end, all. Nine for 4 groups."""
    every = tuple(range(1, groups + 1))
    half = groups // 2
    found = [*((i,) for i in every), every[:half], every[half:], every[:-1], every[1:], every]
    named = dict.fromkeys("+".join(map(str, one)) for one in found if one)
    return sorted(named, key=lambda name: len(_numbers(name)))


def _numbers(selection: str) -> tuple[int, ...]:
    return tuple(int(part) for part in selection.split("+"))
