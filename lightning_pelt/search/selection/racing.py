"""Paired racing: all arms run on the same blocks, and arms shown to be worse are eliminated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_pelt.search.selection.base import ArmStats, Look, Selection, Verdict
from lightning_pelt.search.selection.paired_tests import (
    PairedTests,
    best_column,
    holm,
    level_per_look,
    paired_t_tests,
)
from lightning_pelt.search.selection.rules import Racing


class Race(Selection):
    """A race between arms on the same blocks.

    Each look eliminates the arms that diverged in more than half of their blocks, then the arms
    that Holm's procedure over paired t-tests finds worse than the leader. Blocks on which one of
    the two diverged are left out of their test. The race ends

    - with one active arm: ``winner``;
    - once the interval of the leader's lead over every active arm is within ``± rules.tie``:
      ``tie``, and the simplest active arm wins;
    - at the cap: ``cap``, and the leader wins. Simplicity decides only between arms *shown* to be
      equal; where nothing was shown, the best estimate is the best mean, and of equal means the
      simplest.

    Args:
        arms: their names, simplest first.
        rules: by default those of :class:`~lightning_pelt.search.selection.rules.Racing`.

    Attributes:
        level: one-sided level of the tests at each look;
            see :func:`~lightning_pelt.search.selection.paired_tests.level_per_look`.

    Raises:
        ValueError: see :class:`~lightning_pelt.search.selection.base.Selection`.

    Example:
        >>> scores = {"uniform": [70.1, 71.9, 69.0, 70.8], "spindle": [73.0, 75.1, 71.8, 74.0]}
        >>> race = Race(scores, Racing(first=4, cap=20))
        >>> while not race.finished:
        ...     for arm, block in race.wanted():
        ...         race.tell(arm, block, scores[arm][block])
        >>> race.result().winner, race.result().eliminated
        ('spindle', {'uniform': 4})
    """

    def __init__(self, arms: Iterable[str], rules: Racing | None = None) -> None:
        super().__init__(arms)
        self.rules = rules or Racing()
        self._active = self.arms
        self._eliminated: dict[str, int] = {}
        if self._result is None:
            self._ask(self.arms, range(self.rules.first))

    @property
    def level(self) -> float:
        return level_per_look(self.rules.looks, self.rules.alpha)

    def stats(self) -> tuple[ArmStats, ...]:
        """Current statistics of all arms; also available between looks."""
        _, tests = self._tests()
        return self._make_stats(self._active, tests.mean, tests.low, tests.high)

    def _tests(self) -> tuple[int, PairedTests]:
        """The leader's column, and the tests of the leader against every arm, itself included."""
        scores = self._scores(range(self._blocks))
        columns = [self.arms.index(arm) for arm in self._active or self.arms]
        leader = columns[best_column(scores[:, columns])]
        return leader, paired_t_tests(scores[:, [leader]] - scores, self.level)

    @property
    def _blocks(self) -> int:
        """Number of blocks asked for so far."""
        return self.rules.looks[min(len(self.looks), len(self.rules.looks) - 1)]

    def _look(self) -> None:
        blocks = self._blocks
        self._eliminate([arm for arm in self._active if self._mostly_diverged(arm)], blocks)
        leader, tests = self._tests()
        others = [self.arms.index(arm) for arm in self._active if arm != self.arms[leader]]
        worse = holm(tests.p[others], self.level)
        dropped = [self.arms[i] for i, drop in zip(others, worse, strict=True) if drop]
        self._eliminate(dropped, blocks)
        stats = self._make_stats(self._active, tests.mean, tests.low, tests.high)
        self.looks.append(Look(blocks, self.arms[leader], stats))
        self._continue(self.arms[leader], blocks, stats)

    def _continue(self, leader: str, blocks: int, stats: Sequence[ArmStats]) -> None:
        """Ask for the next blocks, or end the race."""
        tie, active = self.rules.tie, self._active
        if len(active) == 1:
            self._finish(leader, "winner", stats)
        elif active and all(-tie <= s.low and s.high <= tie for s in stats if s.active):
            self._finish(active[0], "tie", stats)
        elif active and blocks == self.rules.cap:
            self._finish(leader, "cap", stats)
        elif active:
            self._ask(active, range(blocks, self._blocks))

    def _finish(self, winner: str, verdict: Verdict, stats: Sequence[ArmStats]) -> None:
        others = [s for s in stats if s.arm != winner and not self._mostly_diverged(s.arm)]
        # Active arms first, then those eliminated last, then those closest to the leader.
        others.sort(key=lambda s: (not s.active, -s.blocks, s.behind))
        self._end(
            winner,
            others[0].arm if others else None,
            verdict,
            tied=() if verdict == "winner" else self._active,
            eliminated=self._eliminated,
        )

    def _eliminate(self, arms: Sequence[str], blocks: int) -> None:
        self._eliminated.update(dict.fromkeys(arms, blocks))
        self._active = tuple(arm for arm in self._active if arm not in arms)
