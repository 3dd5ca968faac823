"""A challenge: does another arm beat the one in place, on blocks that neither was chosen on?"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lightning_pelt.search.contest import Look, Standing, Tally, Verdict
from lightning_pelt.search.racing import Paired, check_alpha, holm, lead, paired


class Challenge(Tally):
    """A fixed number of fresh blocks, the same for all; the incumbent stands unless beaten.

    The winner of a race is chosen for its scores, so they flatter it (winner's curse): here it
    meets its runner-up once more. Each challenger has a one-sided paired t-test against the
    incumbent, Holm-corrected over challengers. Of those that are better the one furthest ahead
    wins (``winner``); if none is, the incumbent stands (``cap``), ``tied`` with the challengers
    that are still in. Diverged blocks are no part of a test. A challenger that diverged in more
    than half of its blocks is out; if the incumbent did, the best challenger takes its place.

    Looks and standings compare with the incumbent: ``behind`` is below zero where a challenger did
    better.

    Args:
        incumbent: the arm in place. Without challengers it is the ``only`` one.
        challengers: simplest first.
        blocks: number of blocks for each arm.
        alpha: chance to replace the incumbent by an arm that is no better.
        start: number of the first block; leave room behind the blocks of earlier contests.

    Raises:
        ValueError: on fewer than 2 blocks, a negative ``start`` or an ``alpha`` that is no level;
            see :class:`~lightning_pelt.search.contest.Tally`.
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

    def standings(self) -> tuple[Standing, ...]:
        """Where all arms stand now against the incumbent."""
        gain = self._gain()
        alive = [arm for arm in self.arms if not self._broken(arm)]
        return self._stand(alive, -gain.mean, -gain.high, -gain.low)

    def _gain(self) -> Paired:
        """Each arm minus the incumbent."""
        scores = self._scores(self.blocks)
        return paired(scores - scores[:, [0]], self.alpha)

    def _look(self) -> None:
        standings = self.standings()
        self.looks.append(Look(len(self.blocks), self.incumbent, standings))
        sound = [i for i, standing in enumerate(standings) if standing.alive]
        if not sound:
            return
        eliminated = {s.arm: s.blocks for s in standings if not s.alive}
        winner, verdict = self._decide(sound)
        others = [s for i, s in enumerate(standings) if i in sound and s.arm != winner]
        nearest = min(others, key=lambda s: s.behind, default=None)
        self._end(
            winner,
            nearest.arm if nearest else None,
            verdict,
            tied=() if verdict == "winner" else tuple(self.arms[i] for i in sound),
            eliminated=eliminated,
        )

    def _decide(self, sound: list[int]) -> tuple[str, Verdict]:
        """The winner among the columns that did not diverge too often, and how it came about."""
        if len(sound) == 1:
            return self.arms[sound[0]], "winner"
        if sound[0] != 0:  # the incumbent is out: no test is left, only the scores
            return self.arms[sound[lead(self._scores(self.blocks)[:, sound])]], "cap"
        gain = self._gain()
        better = np.array(sound[1:])[holm(gain.p[sound[1:]], self.alpha)]
        if not len(better):
            return self.incumbent, "cap"
        return self.arms[better[gain.mean[better].argmax()]], "winner"
