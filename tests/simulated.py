"""A whole search on a small model with simulated scores, so that the right choices are known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import small
from transformers import BertConfig, BertModel

from lightning_pelt.anatomy import Anatomy, examine
from lightning_pelt.search.final_comparison import FinalComparison
from lightning_pelt.search.greedy_search import GreedySearch
from lightning_pelt.search.queue.job import Job, Outcome
from lightning_pelt.search.search_state import SearchState
from lightning_pelt.search.selection.baseline import Baseline
from lightning_pelt.search.selection.racing import Race
from lightning_pelt.search.selection.rules import Racing
from lightning_pelt.search.space import Space

BUDGET = 12_000
TASKS = ("topics", "tone")
# Points that an option adds; options that are not listed add nothing.
GAINS = {
    "grouping": {"bottleneck": 3.0, "increasing": -2.0},
    "allocation": {"uniform": 0.0, "increasing": -2.5, "decreasing": -2.0},
    "groups": {"1+2+3+4": 2.0, "2+3+4": -1.0},
    "group 1": {"AL": 2.0},
    "group 2": {"AP": 2.0},
    "group 3": {"APB": 2.0},
    "group 4": {"PBL": 2.0},
    "final": {"found": 2.0, "P": -4.0},
    "swaps": {"as found": 2.0},
}


CONFIG = BertConfig(
    vocab_size=30, hidden_size=32, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64
)


@cache
def anatomy() -> Anatomy:
    """Six blocks of width 32; at this depth uniform and spindle are the same grouping."""
    return examine(BertModel(CONFIG))


def backbone(folder: Path) -> str:
    """Save the model of :func:`anatomy`."""
    return small._save(BertModel, CONFIG, small._tokenizer(), folder)


def make_search(
    tasks: Sequence[str] = TASKS,
    cap: int = 24,
    seed: int = 0,
    tie: float = 0.3,
    seeds: Sequence[int] = (0, 1, 2),
    subsets: Sequence[str] | None = None,
) -> GreedySearch:
    space = Space(anatomy(), BUDGET, seed=seed, subsets=subsets)
    rules = Racing(first=8, step=4, cap=cap, tie=tie)
    return GreedySearch(
        space,
        tasks,
        select=lambda arms: Race(arms, rules),
        baseline=lambda arms: Baseline(arms, 6),
        compare=lambda found: FinalComparison(found, anatomy(), BUDGET, tasks, seeds),
    )


def noise(*what: object) -> float:
    """A standard normal value, the same for the same arguments."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return float(np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal())


def score(job: Job) -> float | None:
    """Sum of a block's difficulty, the task's, the option's gain and the fit's noise."""
    stage, _, rest = job.label.partition(": ")
    option = rest.rpartition(", ")[0]
    gain = GAINS.get(stage, {}).get(option, 0.0)
    easy = 5 * (job.task == "tone")
    return 70 + easy + gain + 4 * noise(job.seed) + 0.9 * noise(job.key)


def play(
    search: GreedySearch, score: Callable[[Job], float | None] = score, until: str = ""
) -> tuple[SearchState, dict[str, Outcome]]:
    """Score the wanted jobs until the search is finished, or the stage ``until`` has started."""
    outcomes: dict[str, Outcome] = {}
    while True:
        state = search.replay(outcomes)
        started = until and state.records[-1].stage.name == until and _any_done(state, outcomes)
        if state.finished or started:
            return state, outcomes
        outcomes |= {job.key: Outcome(score(job), 6 + noise(job.key)) for job in state.wanted}


def _any_done(state: SearchState, outcomes: dict[str, Outcome]) -> bool:
    return any(key in outcomes for key in state.records[-1].jobs)
