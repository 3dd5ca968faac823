"""Selection of the best arm from scores on blocks: the protocol and the shared bookkeeping."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lightning_pelt.utils.errors import unknown

Score = float | None  # in points; None if the job diverged, which is counted but never averaged
Verdict = Literal["winner", "tie", "cap", "only"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ArmStats:
    """Statistics of one arm.

    Attributes:
        arm: its name.
        blocks: number of blocks with a result, diverged ones included.
        mean: mean score in points; NaN before the first.
        behind: mean of the leader's score minus the arm's over the blocks that both finished, in
            points; NaN if there are none.
        low: lower end of the confidence interval of ``behind``.
        high: upper end.
        active: whether the arm has not been eliminated.
        diverged: number of diverged blocks.
    """

    arm: str
    blocks: int
    mean: float
    behind: float
    low: float
    high: float
    active: bool
    diverged: int


@dataclass(frozen=True)
class Look:
    """One interim analysis of the scores.

    Attributes:
        blocks: number of blocks per arm up to this look.
        leader: the arm that the others are compared with.
        arms: statistics of all arms, simplest first, after the eliminations of this look.
    """

    blocks: int
    leader: str
    arms: tuple[ArmStats, ...]


@dataclass(frozen=True)
class Result:
    """Result of a selection.

    Attributes:
        winner: the selected arm.
        runner_up: the arm to compare the winner with again; None if no other arm finished.
        verdict: ``winner``: shown to be the best. ``tie``: shown to be as good as the best, and
            simpler. ``cap``: the blocks ran out before a difference was shown. ``only``: there was
            one arm.
        tied: the arms that a ``tie`` or ``cap`` leaves undecided, including the winner.
        eliminated: number of blocks after which an arm was eliminated, by arm.
        means: mean score by arm, in points; NaN if there is none.
        diverged: number of diverged blocks by arm.
        designs: number of (arm, block) pairs that were used.
    """

    winner: str
    runner_up: str | None
    verdict: Verdict
    tied: tuple[str, ...]
    eliminated: dict[str, int]
    means: dict[str, float]
    diverged: dict[str, int]
    designs: int


class Selection(ABC):
    """Selects one of several arms from their scores on blocks.

    A selection is a pure replay: the pairs that it wants depend only on the scores that it was
    told. Subclasses implement :meth:`_look`, which is called once all wanted pairs are told.

    Args:
        arms: their names, simplest first. A single arm wins without a block.

    Attributes:
        looks: the interim analyses so far.

    Raises:
        ValueError: there are no arms, or two have the same name.
    """

    def __init__(self, arms: Iterable[str]) -> None:
        self.arms = tuple(arms)
        if not self.arms:
            raise ValueError("no arms: a selection needs at least one")
        if twice := sorted({arm for arm in self.arms if self.arms.count(arm) > 1}):
            raise ValueError(f"arms {twice} are given twice: every arm needs a unique name")
        self.looks: list[Look] = []
        self._told: dict[str, dict[int, float]] = {arm: {} for arm in self.arms}
        self._pending: dict[tuple[str, int], None] = {}  # an ordered set
        self._result: Result | None = None
        if len(self.arms) == 1:
            self._end(self.arms[0], None, "only")

    @abstractmethod
    def _look(self) -> None:
        """Analyse the scores; ask for more pairs or end the selection."""

    @abstractmethod
    def stats(self) -> tuple[ArmStats, ...]:
        """Current statistics of all arms; also available between looks."""

    @property
    def finished(self) -> bool:
        """Whether no more scores are wanted."""
        return not self._pending

    def wanted(self) -> list[tuple[str, int]]:
        """The (arm, block) pairs whose scores are needed next; empty when it is finished."""
        return list(self._pending)

    def tell(self, arm: str, block: int, score: Score) -> None:
        """Record the score of a wanted pair; pairs may be told in any order.

        Args:
            arm: its name.
            block: its number.
            score: in points; None if the job diverged.

        Raises:
            ValueError: the arm is unknown, the pair was told before or is not wanted, or the score
                is not finite.
        """
        if arm not in self._told:
            raise unknown("arm", arm, self.arms)
        if (arm, block) not in self._pending:
            self._refuse(arm, block)
        if score is not None and not isfinite(score):
            raise ValueError(
                f"score {score} of arm {arm!r} on block {block}: expected a finite number of "
                "points, or None if the job diverged"
            )
        del self._pending[arm, block]
        self._told[arm][block] = nan if score is None else float(score)
        if not self._pending:
            self._look()

    def result(self) -> Result:
        """The result of a finished selection.

        Raises:
            RuntimeError: the selection is not finished, or every arm diverged.
        """
        if not self.finished:
            raise RuntimeError(
                f"the selection is not finished: it still wants {len(self._pending)} scores, the "
                f"first of them {next(iter(self._pending))}; see wanted()"
            )
        if self._result is None:
            counts = ", ".join(
                f"{arm}: {self._diverged(arm)} of {len(told)}" for arm, told in self._told.items()
            )
            raise RuntimeError(
                f"every arm diverged in more than half of its blocks ({counts}), so no arm can be "
                "selected. Lower the learning rate"
            )
        return self._result

    def _refuse(self, arm: str, block: int) -> None:
        if block in self._told[arm]:
            raise ValueError(f"arm {arm!r} was told twice on block {block}: tell each pair once")
        state = "is finished" if self.finished else f"wants {len(self._pending)} others"
        raise ValueError(
            f"arm {arm!r} was not asked for block {block}: the selection {state}. Tell only the "
            "pairs in wanted()"
        )

    def _ask(self, arms: Sequence[str], blocks: Iterable[int]) -> None:
        self._pending.update({(arm, block): None for block in blocks for arm in arms})

    def _diverged(self, arm: str) -> int:
        return sum(map(isnan, self._told[arm].values()))

    def _mostly_diverged(self, arm: str) -> bool:
        """Whether more than half of the arm's blocks diverged."""
        return 2 * self._diverged(arm) > len(self._told[arm])

    def _mean(self, arm: str) -> float:
        finite = [score for score in self._told[arm].values() if not isnan(score)]
        return fmean(finite) if finite else nan  # an exact sum, so the order does not matter

    def _scores(self, blocks: Iterable[int]) -> Floats:
        """Scores, shape (blocks, arms); NaN where a score is missing or diverged."""
        told = [self._told[arm] for arm in self.arms]
        rows = [[scores.get(block, nan) for scores in told] for block in blocks]
        return np.array(rows, dtype=np.float64).reshape(-1, len(told))

    def _make_stats(
        self, active: Sequence[str], behind: Floats, low: Floats, high: Floats
    ) -> tuple[ArmStats, ...]:
        """Statistics of all arms; the arrays have one value per arm."""
        return tuple(
            ArmStats(
                arm=arm,
                blocks=len(self._told[arm]),
                mean=self._mean(arm),
                behind=float(behind[i]),
                low=float(low[i]),
                high=float(high[i]),
                active=arm in active,
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
