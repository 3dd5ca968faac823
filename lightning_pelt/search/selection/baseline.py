"""Baseline: a single arm, scored on a fixed number of blocks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lightning_pelt.search.selection.base import ArmStats, Look, Selection


class Baseline(Selection):
    """Measures one arm without comparing it: the baseline S0 of a search.

    Args:
        arms: the name of the arm, as the only element.
        blocks: number of blocks.

    Raises:
        ValueError: there is not exactly one arm, or less than one block.

    Example:
        >>> baseline = Baseline(["random design"], blocks=2)
        >>> for arm, block in baseline.wanted():
        ...     baseline.tell(arm, block, score=70.0 + block)
        >>> baseline.result().means
        {'random design': 70.5}
    """

    def __init__(self, arms: Iterable[str], blocks: int = 8) -> None:
        super().__init__(arms)
        if len(self.arms) != 1 or blocks < 1:
            raise ValueError(
                f"arms={self.arms}, blocks={blocks}: a baseline has one arm and 1 block or more"
            )
        self._ask(self.arms, range(blocks))

    def stats(self) -> tuple[ArmStats, ...]:
        """Current statistics of the arm."""
        zero = np.zeros(1)
        return self._make_stats(self.arms, zero, zero, zero)

    def _look(self) -> None:
        blocks = len(self._told[self.arms[0]])
        self.looks.append(Look(blocks, self.arms[0], self.stats()))
        self._end(self.arms[0], None, "only")
