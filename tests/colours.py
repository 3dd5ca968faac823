"""Rows about colours: as tags of words, as answers of questions, as sets of labels."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from small import WORDS

COLOURS = ("blue", "green", "red")
TAGS = ["O", "B-COL", "I-COL", "B-NUM"]
OTHERS = [word for word in WORDS if word not in COLOURS]


def saved(path: Path, rows: list[dict[str, Any]]) -> str:
    """A file of rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def tagged(count: int, seed: int, most: int = 40) -> list[dict[str, Any]]:
    """Words with tags: colours in a row are one entity, a number is one by itself."""
    draw = random.Random(seed)
    texts = [[draw.choice(WORDS) for _ in range(draw.randint(1, most))] for _ in range(count)]
    return [{"tokens": words, "ner_tags": _tags(words)} for words in texts]


def _tags(words: list[str]) -> list[str]:
    tags: list[str] = []
    for word in words:
        inside = bool(tags) and tags[-1].endswith("COL")
        colour = "I-COL" if inside else "B-COL"
        number = "B-NUM" if word in WORDS[:6] else "O"
        tags.append(colour if word in COLOURS else number)
    return tags


def questions(count: int, seed: int, most: int = 30) -> list[dict[str, Any]]:
    """The answer is the only colour of the context; every fourth context has none."""
    draw, made = random.Random(seed), []
    for number in range(count):
        words = [draw.choice(OTHERS) for _ in range(draw.randint(1, most))]
        colour = draw.choice(COLOURS)
        if number % 4:
            words.insert(draw.randrange(len(words) + 1), colour)
        context = " ".join(words)
        known = [colour] * (number % 4 > 0)
        answers = {"text": known, "answer_start": [context.index(each) for each in known]}
        made.append({"id": str(number), "question": "one", "context": context, "answers": answers})
    return made


def sets(count: int, seed: int) -> list[dict[str, Any]]:
    """The labels of a text are its colours."""
    draw = random.Random(seed)
    texts = [[draw.choice(WORDS) for _ in range(draw.randint(1, 6))] for _ in range(count)]
    return [{"text": " ".join(t), "labels": sorted(set(t) & set(COLOURS))} for t in texts]
