"""Rules of a race, as a recipe gives them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import isfinite


@dataclass(frozen=True)
class Racing:
    """The rules of a race.

    Args:
        first: number of blocks before the first look.
        step: number of blocks between two looks.
        cap: maximum number of blocks. The last look takes place there, even if the last step is
            shorter.
        alpha: probability of eliminating one of two equal arms, over all looks. With more arms,
            Holm's correction protects the best of them.
        tie: arms that differ by less than this are equal, in points.

    Raises:
        ValueError: a rule is out of range; the message names it.

    Example:
        >>> Racing(first=4, step=2, cap=9).looks
        (4, 6, 8, 9)
    """

    first: int = 8
    step: int = 4
    cap: int = 100
    alpha: float = 0.05
    tie: float = 0.3

    def __post_init__(self) -> None:
        if self.first < 2:
            raise ValueError(f"first={self.first}: a paired test needs at least 2 blocks")
        if self.step < 1:
            raise ValueError(f"step={self.step}: each look needs at least 1 more block")
        if self.cap < self.first:
            raise ValueError(
                f"cap={self.cap} is below first={self.first}: raise cap or lower first"
            )
        check_alpha(self.alpha)
        if not (isfinite(self.tie) and self.tie >= 0):
            raise ValueError(f"tie={self.tie}: expected a number of points, 0 or more")

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """Number of blocks at each look."""
        return (*range(self.first, self.cap, self.step), self.cap)


def check_alpha(alpha: float) -> None:
    """Check a significance level.

    Raises:
        ValueError: the level is not between 0 and 0.5.
    """
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha={alpha}: expected a level between 0 and 0.5, such as 0.05")
