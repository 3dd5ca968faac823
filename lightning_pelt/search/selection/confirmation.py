"""Confirmation: does another arm beat the incumbent on blocks that neither was selected on?"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lightning_pelt.search.selection.base import ArmStats, Look, Selection, Verdict
from lightning_pelt.search.selection.paired_tests import (
    PairedTests,
    best_column,
    holm,
    paired_t_tests,
)
from lightning_pelt.search.selection.rules import check_alpha


class Confirmation(Selection):
    """Compares an incumbent with challengers on a fixed number of fresh blocks.

    The winner of a race was selected by its scores, so these overestimate it (winner's curse). Here
    it is compared with its runner-up once more. Each challenger has a one-sided paired t-test
    against the incumbent, with Holm's correction over challengers. If challengers are better, the
    one furthest ahead wins (``winner``). If none is, the incumbent is kept (``cap``), ``tied`` with
    the challengers that remain. Diverged blocks are left out of the tests. A challenger that
    diverged in more than half of its blocks is eliminated; if the incumbent did, the best
    challenger replaces it.

    Statistics are relative to the incumbent: ``behind`` is below zero for a better challenger.

    Args:
        incumbent: the arm selected before. Without challengers it is the ``only`` one.
        challengers: simplest first.
        blocks: number of blocks for each arm.
        alpha: probability of replacing the incumbent by an arm that is not better.
        start: number of the first block; must be above the blocks of earlier selections.

    Raises:
        ValueError: there are fewer than 2 blocks, ``start`` is negative or ``alpha`` is not a
            level; see also :class:`~lightning_pelt.search.selection.base.Selection`.

    Example:
        >>> scores = {"AL": [70.1, 71.9, 69.0], "AP": [73.0, 75.1, 71.8]}
        >>> confirmation = Confirmation("AL", ["AP"], blocks=3, start=100)
        >>> for arm, block in confirmation.wanted():
        ...     confirmation.tell(arm, block, scores[arm][block - 100])
        >>> confirmation.result().winner
        'AP'
    """

    def __init__(
        self,
        incumbent: str,
        challengers: Iterable[str],
        *,
        blocks: int = 8,
        alpha: float = 0.05,
        start: int = 0,
    ) -> None:
        super().__init__((incumbent, *challengers))
        if blocks < 2:
            raise ValueError(f"blocks={blocks}: a paired test needs at least 2 blocks")
        if start < 0:
            raise ValueError(f"start={start}: blocks are numbered from 0")
        check_alpha(alpha)
        self.incumbent, self.alpha = incumbent, alpha
        self.blocks = range(start, start + blocks)
        if self._result is None:
            self._ask(self.arms, self.blocks)

    def stats(self) -> tuple[ArmStats, ...]:
        """Current statistics of all arms relative to the incumbent."""
        gain = self._gain()
        active = [arm for arm in self.arms if not self._mostly_diverged(arm)]
        return self._make_stats(active, -gain.mean, -gain.high, -gain.low)

    def _gain(self) -> PairedTests:
        """Each arm minus the incumbent."""
        scores = self._scores(self.blocks)
        return paired_t_tests(scores - scores[:, [0]], self.alpha)

    def _look(self) -> None:
        stats = self.stats()
        self.looks.append(Look(len(self.blocks), self.incumbent, stats))
        active = [i for i, arm in enumerate(stats) if arm.active]
        if not active:
            return
        winner, verdict = self._decide(active)
        others = [s for i, s in enumerate(stats) if i in active and s.arm != winner]
        nearest = min(others, key=lambda s: s.behind, default=None)
        self._end(
            winner,
            nearest.arm if nearest else None,
            verdict,
            tied=() if verdict == "winner" else tuple(self.arms[i] for i in active),
            eliminated={s.arm: s.blocks for s in stats if not s.active},
        )

    def _decide(self, active: list[int]) -> tuple[str, Verdict]:
        """The winner among the active columns, and the verdict."""
        if len(active) == 1:
            return self.arms[active[0]], "winner"
        if active[0] != 0:  # the incumbent is eliminated: no test is left, only the scores
            return self.arms[active[best_column(self._scores(self.blocks)[:, active])]], "cap"
        gain = self._gain()
        better = np.array(active[1:])[holm(gain.p[active[1:]], self.alpha)]
        if not len(better):
            return self.incumbent, "cap"
        return self.arms[better[gain.mean[better].argmax()]], "winner"
