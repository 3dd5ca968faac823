"""Which gates have been low for so long that their submodules may go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Pruning:
    """Counts the validations in a row during which each gate's mean stays under a threshold.

    Args:
        below: the threshold, between 0 and 1; ``None`` prunes nothing.
        after: how many validations in a row close a gate for good.

    Raises:
        ValueError: for a threshold that no gate, or every gate, is under, or no validation at all.
    """

    def __init__(self, below: float | None, after: int) -> None:
        if below is not None and not 0.0 < below < 1.0:
            raise ValueError(f"prune_below={below} must lie between 0 and 1, as gates do")
        if after < 1:
            raise ValueError(f"prune_after={after} must be at least one validation")
        self.below = below
        self.after = after
        self.closed: list[str] = []
        self.rows: dict[str, int] = {}  # validations in a row under the threshold, by gate

    def judge(self, means: Mapping[str, float]) -> list[str]:
        """Take in one validation's mean gates; the names of those that it closes for good."""
        if self.below is None:
            return []
        fresh = []
        for name, mean in means.items():
            if name not in self.closed:
                self.rows[name] = self.rows.get(name, 0) + 1 if mean < self.below else 0
                if self.rows[name] >= self.after:
                    fresh.append(name)
        self.closed += fresh
        return fresh

    def state_dict(self) -> dict[str, Any]:
        return {"pruned": list(self.closed), "below": dict(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.closed, self.rows = list(state["pruned"]), dict(state["below"])
