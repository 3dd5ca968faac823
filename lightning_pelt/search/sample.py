"""A sample: one arm on a fixed number of blocks, where there is nothing to choose."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lightning_pelt.search.contest import Look, Standing, Tally


class Sample(Tally):
    """How good an arm is, without a rival: the baseline S0 of a search.

    Args:
        arms: its name, alone.
        blocks: their number.

    Raises:
        ValueError: not one arm, or fewer than one block.
    """

    def __init__(self, arms: Iterable[str], blocks: int = 8) -> None:
        super().__init__(arms)
        if len(self.arms) != 1 or blocks < 1:
            raise ValueError(
                f"arms={self.arms}, blocks={blocks}: a sample has one arm and 1 block or more"
            )
        self._ask(self.arms, range(blocks))

    def standings(self) -> tuple[Standing, ...]:
        """Where the arm stands now."""
        none = np.zeros(1)
        return self._stand(self.arms, none, none, none)

    def _look(self) -> None:
        blocks = len(self._told[self.arms[0]])
        self.looks.append(Look(blocks, self.arms[0], self.standings()))
        self._end(self.arms[0], None, "only")
