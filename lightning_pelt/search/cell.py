"""Cells: the single fits of a search, each known by what it trains."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

Judge = Literal["holdout", "dev"]


@dataclass(frozen=True)
class Cell:
    """One fit: a plan, a task and a seed.

    Attributes:
        plan: the configuration of the plan, resolved on the model: concrete methods in concrete
            blocks. Two designs that come to the same plan are one cell.
        task: name of the task in the recipe.
        seed: of the order of the data and of the new weights.
        judge: the rows that score it: held out of the training split, or the official dev split.
        parameters: that the plan trains, without head and gates.
        label: for people, e.g. ``"grouping: spindle, block 3"``. Not part of what the cell is.
    """

    plan: Mapping[str, Any]
    task: str
    seed: int
    judge: Judge = "holdout"
    parameters: int = 0
    label: str = field(default="", compare=False)

    @cached_property
    def key(self) -> str:
        """The name of the cell: the same for everything that trains and scores the same."""
        what = [self.plan, self.task, self.seed, self.judge]
        text = json.dumps(what, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """What :meth:`to_json` wrote."""
        return cls(**data)


@dataclass(frozen=True)
class Outcome:
    """What a cell came to.

    Attributes:
        score: in points, 0 to 100; None if the fit diverged.
        seconds: that the fit took.
        metrics: everything that was measured, by name.
    """

    score: float | None
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Whether the fit came to no number."""
        return self.score is None
