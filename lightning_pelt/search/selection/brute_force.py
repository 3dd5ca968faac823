"""Brute force: the paper's protocol, a fixed number of independent designs for every arm."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from math import nan

import numpy as np
from scipy import stats

from lightning_pelt.search.selection.base import ArmStats, Floats, Look, Selection


class BruteForce(Selection):
    """Scores every arm on ``designs`` separate blocks; the best mean wins, however small its lead.

    Scores are not paired: arm ``i`` takes the blocks from ``i * designs`` on, so no two arms share
    a draw. No arm is eliminated early, but an arm that diverged in more than half of its blocks
    cannot win. The intervals are Welch's, at 95%. Source: Chen et al. (2023), with 100 designs.

    Args:
        arms: their names, simplest first; of equal means the simplest wins.
        designs: number of blocks for each arm.

    Raises:
        ValueError: ``designs`` is below 1; see also
            :class:`~lightning_pelt.search.selection.base.Selection`.

    Example:
        >>> brute_force = BruteForce(["uniform", "spindle"], designs=2)
        >>> brute_force.wanted()
        [('uniform', 0), ('uniform', 1), ('spindle', 2), ('spindle', 3)]
        >>> for (arm, block), score in zip(brute_force.wanted(), [70.0, 71.0, 73.0, 72.0]):
        ...     brute_force.tell(arm, block, score)
        >>> brute_force.result().winner
        'spindle'
    """

    def __init__(self, arms: Iterable[str], designs: int = 100) -> None:
        super().__init__(arms)
        if designs < 1:
            raise ValueError(f"designs={designs}: every arm needs at least 1 design")
        self.designs = designs
        if self._result is None:
            for i, arm in enumerate(self.arms):
                self._ask([arm], range(i * designs, (i + 1) * designs))

    def stats(self) -> tuple[ArmStats, ...]:
        """Current statistics of all arms."""
        told = self._told.values()
        samples = [np.array([scores[b] for b in sorted(scores)], np.float64) for scores in told]
        samples = [sample[np.isfinite(sample)] for sample in samples]
        best = self.arms.index(self._ranked()[0])
        gaps = [(0.0,) * 3 if i == best else _gap(samples[best], s) for i, s in enumerate(samples)]
        return self._make_stats(self.arms, *np.array(gaps).T)

    def _ranked(self) -> list[str]:
        """The arms by mean, best first; mostly diverged and unscored arms are last."""
        means = {arm: self._mean(arm) for arm in self.arms}
        return sorted(
            self.arms, key=lambda a: (self._mostly_diverged(a), np.isnan(means[a]), -means[a])
        )

    def _look(self) -> None:
        ranked = self._ranked()
        self.looks.append(Look(self.designs, ranked[0], self.stats()))
        sound = [arm for arm in ranked if not self._mostly_diverged(arm)]
        if sound:
            self._end(sound[0], sound[1] if len(sound) > 1 else None, "winner")


def _gap(best: Floats, other: Floats) -> tuple[float, float, float]:
    """Difference of two means and its 95% interval for unequal variances (Welch 1947)."""
    if not (len(best) and len(other)):
        return nan, nan, nan
    gap = float(best.mean() - other.mean())
    if min(len(best), len(other)) < 2:
        return gap, nan, nan
    if best.var() == other.var() == 0:
        return gap, gap, gap
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one of the samples may be constant
        low, high = stats.ttest_ind(best, other, equal_var=False).confidence_interval(0.95)
    return gap, float(low), float(high)
