"""Questions with choices: the right one has the word of the question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from small import WORDS


def questions(path: Path, *, count: int = 32, seed: int = 0, fixed: int | None = None) -> str:
    """A file of questions with 2 to 4 choices, or always ``fixed``; the answers are letters."""
    draw = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        size = fixed or int(draw.integers(2, 5))
        choices = draw.choice(WORDS, size, replace=False).tolist()
        answer = int(draw.integers(size))
        rows.append(
            {"question": choices[answer], "choices": choices, "answer": "ABCD"[answer]},
        )
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)
