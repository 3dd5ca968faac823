"""Pairs of texts in two languages of five words each, which say the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from small import WORDS

HERE, THERE = WORDS[:5], WORDS[5:10]


def translations(path: Path, *, count: int = 128, seed: int = 0, negatives: int = 0) -> str:
    """A file of pairs of 1 to 4 words, and of negatives that differ in a word."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words = draw.choice(5, int(draw.integers(1, 5)), replace=False)
        row = {
            "anchor": " ".join(HERE[word] for word in words),
            "positive": " ".join(THERE[word] for word in reversed(words)),
        }
        for number in range(negatives):
            other = (*words[:-1], (words[-1] + 1 + number) % 5)
            row[f"negative{number}"] = " ".join(THERE[word] for word in other)
        rows.append(row)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)
