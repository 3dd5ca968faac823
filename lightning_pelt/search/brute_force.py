"""Brute force: the paper's protocol, a fixed number of independent designs for every arm."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

import numpy as np
from scipy.special import stdtrit

from lightning_pelt.search.contest import Floats, Look, Standing, Tally


class BruteForce(Tally):
    """Every arm on ``designs`` blocks of its own; the best mean wins, whatever its lead.

    Nothing is paired: arm ``i`` takes the blocks from ``i * designs`` on, so that no two arms share
    a draw. Nobody drops out, but an arm that diverged in more than half of its blocks cannot win.
    The interval of a standing is Welch's, at 95%. Source: Chen et al. (2023), 100 designs.

    Args:
        arms: their names, simplest first; of equal means the simplest wins.
        designs: number of blocks for each.

    Raises:
        ValueError: if ``designs`` is below 1; see :class:`~lightning_pelt.search.contest.Tally`.
    """

    def __init__(self, arms: Iterable[str], designs: int = 100) -> None:
        super().__init__(arms)
        if designs < 1:
            raise ValueError(f"designs={designs}: every arm needs at least 1 design")
        self.designs = designs
        if self._result is None:
            for i, arm in enumerate(self.arms):
                self._ask([arm], range(i * designs, (i + 1) * designs))

    def standings(self) -> tuple[Standing, ...]:
        """Where all arms stand now."""
        told = self._told.values()
        samples = [np.array([scores[b] for b in sorted(scores)], np.float64) for scores in told]
        samples = [sample[np.isfinite(sample)] for sample in samples]
        best = samples[self.arms.index(self._ranked()[0])]
        gaps = np.array([welch(best, sample) for sample in samples])
        return self._stand(self.arms, *gaps.T)

    def _ranked(self) -> list[str]:
        """The arms, best mean first; broken and unscored ones last."""
        means = {arm: self._mean(arm) for arm in self.arms}
        return sorted(self.arms, key=lambda arm: (self._broken(arm), *descending(means[arm])))

    def _look(self) -> None:
        ranked = self._ranked()
        self.looks.append(Look(self.designs, ranked[0], self.standings()))
        sound = [arm for arm in ranked if not self._broken(arm)]
        if sound:
            self._end(sound[0], sound[1] if len(sound) > 1 else None, "winner")


def descending(mean: float) -> tuple[bool, float]:
    """A key that sorts the largest mean first and nan last."""
    return (mean != mean, -mean)


def welch(best: Floats, other: Floats) -> tuple[float, float, float]:
    """Difference of two means and its 95% interval, for unequal variances (Welch 1947)."""
    if best is other:
        return (0.0, 0.0, 0.0)
    nan = float("nan")
    if not (len(best) and len(other)):
        return (nan, nan, nan)
    gap = float(best.mean() - other.mean())
    if min(len(best), len(other)) < 2:
        return (gap, nan, nan)
    a, b = (float(sample.var(ddof=1)) / len(sample) for sample in (best, other))
    if a + b == 0:
        return (gap, gap, gap)
    freedom = (a + b) ** 2 / (a**2 / (len(best) - 1) + b**2 / (len(other) - 1))
    half = float(stdtrit(freedom, 0.975)) * sqrt(a + b)
    return (gap, gap - half, gap + half)
