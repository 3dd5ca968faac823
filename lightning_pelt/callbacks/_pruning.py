"""Which gates have stayed below a threshold for long enough to be closed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class Pruning:
    """Counts the consecutive validations in which each gate's mean is below a threshold.

    Args:
        below: the threshold, between 0 and 1; None disables pruning.
        after: number of consecutive validations after which a gate is closed permanently.

    Raises:
        ValueError: the threshold is not between 0 and 1, or ``after`` is below 1.
    """

    def __init__(self, below: float | None, after: int) -> None:
        if below is not None and not 0.0 < below < 1.0:
            raise ValueError(f"prune_below={below} must be between 0 and 1, the range of gates")
        if after < 1:
            raise ValueError(f"prune_after={after} must be at least one validation")
        self.below = below
        self.after = after
        self.closed: list[str] = []
        self.low_validations: dict[str, int] = {}  # consecutive ones below the threshold, by gate

    def update(self, means: Mapping[str, float]) -> list[str]:
        """Count one validation, and return the names of the gates that it closes."""
        if self.below is None:
            return []
        closed = []
        for name, mean in means.items():
            if name not in self.closed:
                count = self.low_validations.get(name, 0) + 1 if mean < self.below else 0
                self.low_validations[name] = count
                if count >= self.after:
                    closed.append(name)
        self.closed += closed
        return closed

    def restart(self, closed: Iterable[str]) -> None:
        """Begin another run, in which only gates among ``closed`` can be closed already."""
        kept = set(closed)
        self.closed = [name for name in self.closed if name in kept]
        self.low_validations = {}

    def state_dict(self) -> dict[str, Any]:
        return {"pruned": list(self.closed), "below": dict(self.low_validations)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.closed, self.low_validations = list(state["pruned"]), dict(state["below"])
