"""State of a search: its stages so far, the found design, and the jobs that are needed next."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_pelt.plans.design_space import Design
from lightning_pelt.search.final_comparison import FinalComparison
from lightning_pelt.search.queue.job import Job
from lightning_pelt.search.selection.base import Selection
from lightning_pelt.search.selection.confirmation import Confirmation
from lightning_pelt.search.space import Stage


@dataclass
class StageRecord:
    """Progress of one stage.

    Attributes:
        stage: the stage and its options.
        selection: between the options.
        confirmation: comparison of the winner and the runner-up on fresh blocks; None if there is
            no runner-up, or the selection is not finished.
        chosen: the chosen option; None until the stage is settled.
        jobs: every job of the stage by its key.
        reused: number of these jobs that an earlier stage had asked for.
    """

    stage: Stage
    selection: Selection
    confirmation: Confirmation | None = None
    chosen: str | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    reused: int = 0


@dataclass
class SearchState:
    """Progress of a search.

    Attributes:
        records: records of the stages so far; all but the last are settled.
        settled: the choice of each settled stage, by the stage's name.
        found: the found design at the search budget, once all stages are settled.
        comparison: the final comparison, once all stages are settled.
        gated_jobs: for a search by gates, the jobs of the run with every method.
        gate_means: mean gates of that run, by group and method letter.
        wanted: jobs that are needed next; none of them has an outcome. Empty when it is finished.
    """

    records: list[StageRecord] = field(default_factory=list)
    settled: dict[str, str] = field(default_factory=dict)
    found: Design | None = None
    comparison: FinalComparison | None = None
    gated_jobs: list[Job] = field(default_factory=list)
    gate_means: dict[str, dict[str, float]] = field(default_factory=dict)
    wanted: list[Job] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether the search has nothing left to do."""
        return not self.wanted and self.comparison is not None
