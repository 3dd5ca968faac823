"""Contests: arms scored on blocks until one of them is chosen; what all kinds of contest share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan
from statistics import fmean
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_pelt.errors import unknown

Score = float | None  # in points; None: the cell diverged. Counted, never averaged in
Verdict = Literal["winner", "tie", "cap", "only"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Standing:
    """Where one arm stands.

    Attributes:
        arm: its name.
        blocks: that it was told, diverged ones included.
        mean: of its scores, in points; nan before the first.
        behind: the leader's score minus its own, mean over the blocks that both finished, in
            points; nan where it cannot be known.
        low: lower end of the confidence interval of ``behind``.
        high: upper end.
        alive: whether it is still in the contest.
        diverged: number of its blocks that came to no score.
    """

    arm: str
    blocks: int
    mean: float
    behind: float
    low: float
    high: float
    alive: bool
    diverged: int


@dataclass(frozen=True)
class Look:
    """What a contest saw when it looked at its scores.

    Attributes:
        blocks: per arm, up to this look.
        leader: the arm that the others were compared with.
        standings: of all arms, simplest first, after the eliminations of this look.
    """

    blocks: int
    leader: str
    standings: tuple[Standing, ...]


@dataclass(frozen=True)
class Result:
    """How a contest ended.

    Attributes:
        winner: the arm to go on with.
        runner_up: the arm to measure it against once more; None if it had no rival that finished.
        verdict: ``winner``: shown to be the best. ``tie``: shown to be as good as the best, and
            simpler. ``cap``: the blocks ran out before anything was shown. ``only``: no rival.
        tied: the arms that a ``tie`` or ``cap`` leaves undecided, the winner among them.
        eliminated: number of blocks after which an arm was dropped, by arm.
        means: mean score by arm, in points; nan where there is none.
        diverged: number of diverged blocks by arm.
        designs: number of (arm, block) pairs that it took.
    """

    winner: str
    runner_up: str | None
    verdict: Verdict
    tied: tuple[str, ...]
    eliminated: dict[str, int]
    means: dict[str, float]
    diverged: dict[str, int]
    designs: int


class Contest(Protocol):
    """A choice among arms as a pure replay: what it wants follows from what it was told."""

    arms: tuple[str, ...]
    looks: list[Look]

    def wanted(self) -> list[tuple[str, int]]:
        """The (arm, block) pairs still to be told before it can go on; none when it is over."""
        ...

    def tell(self, arm: str, block: int, score: Score) -> None:
        """The score of a wanted pair; pairs that are wanted together come in any order."""
        ...

    @property
    def over(self) -> bool: ...

    def result(self) -> Result:
        """How it ended; only when it is over."""
        ...

    def standings(self) -> tuple[Standing, ...]:
        """Where all arms stand now, also between looks."""
        ...


class Tally(ABC):
    """The bookkeeping of a contest: what was asked, what was told. Children decide at a look.

    Args:
        arms: their names, simplest first. A single arm wins without a block.

    Raises:
        ValueError: without arms, or if two have the same name.
    """

    def __init__(self, arms: Iterable[str]) -> None:
        self.arms = tuple(arms)
        if not self.arms:
            raise ValueError("no arms: a contest needs at least one")
        if twice := sorted({arm for arm in self.arms if self.arms.count(arm) > 1}):
            raise ValueError(f"arms {twice} are given twice: every arm needs a name of its own")
        self.looks: list[Look] = []
        self._told: dict[str, dict[int, float]] = {arm: {} for arm in self.arms}
        self._pending: dict[tuple[str, int], None] = {}  # a set that keeps its order
        self._result: Result | None = None
        if len(self.arms) == 1:
            self._end(self.arms[0], None, "only")

    @abstractmethod
    def _look(self) -> None:
        """All that was asked is told: ask for more or come to an end."""

    @abstractmethod
    def standings(self) -> tuple[Standing, ...]:
        """Where all arms stand now, also between looks."""

    @property
    def over(self) -> bool:
        return not self._pending

    def wanted(self) -> list[tuple[str, int]]:
        """The (arm, block) pairs still to be told before it can go on; none when it is over."""
        return list(self._pending)

    def tell(self, arm: str, block: int, score: Score) -> None:
        """Take the score of a pair that :meth:`wanted` names.

        Args:
            arm: its name.
            block: its number.
            score: in points; None if the cell diverged.

        Raises:
            ValueError: if the arm is unknown, the pair was told before or never asked for, or the
                score is not finite.
        """
        if arm not in self._told:
            raise unknown("arm", arm, self.arms)
        if (arm, block) not in self._pending:
            self._refuse(arm, block)
        if score is not None and not isfinite(score):
            raise ValueError(
                f"score {score} of arm {arm!r} on block {block}: expected a finite number of "
                "points, or None if the cell diverged"
            )
        del self._pending[arm, block]
        self._told[arm][block] = nan if score is None else float(score)
        if not self._pending:
            self._look()

    def result(self) -> Result:
        """How it ended.

        Raises:
            RuntimeError: if it is not over, or if every arm diverged.
        """
        if not self.over:
            raise RuntimeError(
                f"the contest is not over: it still wants {len(self._pending)} scores, the first "
                f"of them {next(iter(self._pending))}; see wanted()"
            )
        if self._result is None:
            counts = ", ".join(
                f"{arm}: {self._diverged(arm)} of {len(told)}" for arm, told in self._told.items()
            )
            raise RuntimeError(
                f"every arm diverged in more than half of its blocks ({counts}): nothing can be "
                "chosen. Lower the learning rate"
            )
        return self._result

    def _refuse(self, arm: str, block: int) -> None:
        if block in self._told[arm]:
            raise ValueError(f"arm {arm!r} was told twice on block {block}: tell each pair once")
        state = "is over" if self.over else f"wants {len(self._pending)} others"
        raise ValueError(
            f"arm {arm!r} was not asked for block {block}: the contest {state}. Tell only what "
            "wanted() names"
        )

    def _ask(self, arms: Sequence[str], blocks: Iterable[int]) -> None:
        self._pending.update({(arm, block): None for block in blocks for arm in arms})

    def _diverged(self, arm: str) -> int:
        return sum(map(isnan, self._told[arm].values()))

    def _broken(self, arm: str) -> bool:
        """Whether more than half of its blocks diverged."""
        return 2 * self._diverged(arm) > len(self._told[arm])

    def _mean(self, arm: str) -> float:
        finite = [score for score in self._told[arm].values() if not isnan(score)]
        return fmean(finite) if finite else nan  # the exact sum: the order of telling is no matter

    def _scores(self, blocks: Iterable[int]) -> Floats:
        """Scores, (blocks, arms); nan where one is missing or diverged."""
        told = [self._told[arm] for arm in self.arms]
        rows = [[scores.get(block, nan) for scores in told] for block in blocks]
        return np.array(rows, dtype=np.float64).reshape(-1, len(told))

    def _stand(
        self, alive: Sequence[str], behind: Floats, low: Floats, high: Floats
    ) -> tuple[Standing, ...]:
        """Standings of all arms from what was found for each of them, in their order."""
        return tuple(
            Standing(
                arm=arm,
                blocks=len(self._told[arm]),
                mean=self._mean(arm),
                behind=float(behind[i]),
                low=float(low[i]),
                high=float(high[i]),
                alive=arm in alive,
                diverged=self._diverged(arm),
            )
            for i, arm in enumerate(self.arms)
        )

    def _end(
        self,
        winner: str,
        runner_up: str | None,
        verdict: Verdict,
        *,
        tied: tuple[str, ...] = (),
        eliminated: dict[str, int] | None = None,
    ) -> None:
        self._result = Result(
            winner=winner,
            runner_up=runner_up,
            verdict=verdict,
            tied=tied,
            eliminated=dict(eliminated or {}),
            means={arm: self._mean(arm) for arm in self.arms},
            diverged={arm: self._diverged(arm) for arm in self.arms},
            designs=sum(map(len, self._told.values())),
        )
