"""A whole search on a small model whose scores are made up, so that its right answers are known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import small
from transformers import BertConfig, BertModel

from lightning_pelt.anatomy import Anatomy, examine
from lightning_pelt.search.cell import Cell, Outcome
from lightning_pelt.search.course import Course, Walk
from lightning_pelt.search.finals import Finals
from lightning_pelt.search.racing import Race, Racing
from lightning_pelt.search.sample import Sample
from lightning_pelt.search.space import Space

BUDGET = 12_000
TASKS = ("topics", "tone")
# Points that an option adds; options that are not here add nothing.
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
    """Six blocks, 32 wide: at this depth uniform and spindle are one grouping."""
    return examine(BertModel(CONFIG))


def backbone(folder: Path) -> str:
    """The model of :func:`anatomy` on the disk."""
    return small._save(BertModel, CONFIG, small._tokenizer(), folder)


def course(
    tasks: Sequence[str] = TASKS,
    cap: int = 24,
    seed: int = 0,
    tie: float = 0.3,
    seeds: Sequence[int] = (0, 1, 2),
    subsets: Sequence[str] | None = None,
) -> Course:
    space = Space(anatomy(), BUDGET, seed=seed, subsets=subsets)
    rules = Racing(first=8, step=4, cap=cap, tie=tie)
    return Course(
        space,
        tasks,
        contest=lambda arms: Race(arms, rules),
        baseline=lambda arms: Sample(arms, 6),
        finals=lambda found: Finals(found, anatomy(), BUDGET, tasks, seeds),
    )


def noise(*what: object) -> float:
    """Standard normal, the same for the same things."""
    digest = hashlib.sha256(repr(what).encode()).digest()
    return float(np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal())


def score(cell: Cell) -> float | None:
    """A block's difficulty, a task's, the option's gain, and noise of the fit's own."""
    stage, _, rest = cell.label.partition(": ")
    option = rest.rpartition(", ")[0]
    gain = GAINS.get(stage, {}).get(option, 0.0)
    easy = 5 * (cell.task == "tone")
    return 70 + easy + gain + 4 * noise(cell.seed) + 0.9 * noise(cell.key)


def play(
    course: Course, score: Callable[[Cell], float | None] = score, until: str = ""
) -> tuple[Walk, dict[str, Outcome]]:
    """Walk and score what is wanted until it is over, or until the stage ``until`` has begun."""
    outcomes: dict[str, Outcome] = {}
    while True:
        walk = course.walk(outcomes)
        if walk.over or (until and walk.records[-1].stage.name == until and _some(walk, outcomes)):
            return walk, outcomes
        outcomes |= {c.key: Outcome(score(c), 6 + noise(c.key)) for c in walk.wanted}


def _some(walk: Walk, outcomes: dict[str, Outcome]) -> bool:
    return any(key in outcomes for key in walk.records[-1].cells)
