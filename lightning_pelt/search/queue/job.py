"""Jobs: the fits that a search consists of, each identified by what it trains and scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

ScoredOn = Literal["holdout", "dev"]


@dataclass(frozen=True)
class Job:
    """One fit of a search: a plan, a task and a seed.

    Attributes:
        plan: configuration of the plan, resolved on the model: concrete methods in concrete
            blocks. Two designs that resolve to the same plan are the same job.
        task: name of the task in the recipe.
        seed: seed of the data order and of the new weights.
        scored_on: rows that score the fit: ``holdout``, held out of the training split, or
            ``dev``, the dev split.
        parameters: number of parameters that the plan trains, without head and gates.
        label: description for people, e.g. ``"grouping: spindle, block 3"``. It is not part of
            the job's identity.

    Example:
        >>> from lightning_pelt import LoRA, Plan
        >>> plan = Plan.uniform(LoRA(r=4)).to_config()
        >>> Job(plan, "sst2", seed=0).key == Job(plan, "sst2", seed=0, label="again").key
        True
        >>> Job(plan, "sst2", seed=0).key == Job(plan, "sst2", seed=1).key
        False
    """

    plan: Mapping[str, Any]
    task: str
    seed: int
    scored_on: ScoredOn = "holdout"
    parameters: int = 0
    label: str = field(default="", compare=False)

    @cached_property
    def key(self) -> str:
        """Identifier of the job: equal for two jobs that train and score the same."""
        identity = [self.plan, self.task, self.seed, self.scored_on]
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def to_json(self) -> dict[str, Any]:
        """The job as plain data. Ledgers store ``scored_on`` as ``judge``, its name in 0.1."""
        data = asdict(self)
        data["judge"] = data.pop("scored_on")
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        """Build a job from the output of :meth:`to_json`."""
        arguments = dict(data)
        return cls(scored_on=arguments.pop("judge"), **arguments)


@dataclass(frozen=True)
class Outcome:
    """Result of a job.

    Attributes:
        score: in points, 0 to 100; None if the fit diverged.
        seconds: duration of the fit.
        metrics: all measurements, by name.

    Example:
        >>> Outcome(71.5, seconds=6.2).diverged
        False
        >>> Outcome(None).diverged
        True
    """

    score: float | None
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Whether the fit ended without a finite score."""
        return self.score is None


Outcomes = Mapping[str, Outcome]  # by the key of the job


@dataclass(frozen=True)
class JobCounts:
    """Number of jobs in each state, and of live processes.

    Attributes:
        waiting: jobs that no process has taken.
        running: jobs that a process holds.
        finished: jobs with an outcome.
        workers: processes that hold a job.
        idle: processes that have run a job and hold none now.
    """

    waiting: int
    running: int
    finished: int
    workers: int
    idle: int = field(default=0, compare=False)
