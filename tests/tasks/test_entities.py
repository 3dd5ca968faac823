"""Entities and their scores against seqeval, on random and on legal tags."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from seqeval import scheme as schemes
from seqeval.metrics import classification_report, f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from lightning_pelt.tasks._entities import (
    RULES,
    EntityScore,
    check_tags,
    entities,
    entity_counts,
    types_of,
)

TYPES = ["LOC", "ORG", "PER"]


def tags_of(scheme: str) -> list[str]:
    prefixes = RULES[scheme].prefixes if scheme in RULES else "BIES"
    return ["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in TYPES)]


def rows(tags: list[str], count: int, seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    weights = [len(tags) if tag == "O" else 2 for tag in tags]
    return [draw.choices(tags, weights, k=draw.randint(1, 12)) for _ in range(count)]


@pytest.mark.parametrize("scheme", [*RULES])
def test_strict_entities_are_those_of_seqeval(scheme: str) -> None:
    kind = getattr(schemes, scheme)
    for row in rows(tags_of(scheme), 500, seed=1):
        expected = [(e.tag, e.start, e.end) for e in schemes.Tokens(row, kind).entities]
        assert entities(row, scheme) == expected, row


def test_conll_entities_are_those_of_seqeval() -> None:
    for row in rows(tags_of("conll"), 1000, seed=2):
        expected = [(kind, start, end + 1) for kind, start, end in get_entities(row)]
        assert entities(row, "conll") == expected, row


def test_tags_without_types_are_entities() -> None:
    assert entities(["B", "I", "O", "B"], "IOB2") == [("_", 0, 2), ("_", 3, 4)]
    assert types_of(["O", "B", "I"]) == ["_"]


@pytest.mark.parametrize(
    ("scheme", "options"),
    [("conll", {}), ("IOB2", {"mode": "strict", "scheme": schemes.IOB2})],
)
def test_scores_are_those_of_seqeval(scheme: str, options: dict[str, Any]) -> None:
    tags = [tag for tag in tags_of("IOB2") if tag != "I-ORG"]
    true = rows(tags, 60, seed=3)
    draw = random.Random(4)
    predicted = [[tag if draw.random() < 0.8 else draw.choice(tags) for tag in row] for row in true]
    metrics = {name: EntityScore(3, name) for name in ("f1", "precision", "recall")}
    metrics["macro_f1"] = EntityScore(3, of="macro")
    metrics |= {kind: EntityScore(3, of=index) for index, kind in enumerate(TYPES)}
    for part in (slice(0, 7), slice(7, 60)):
        counts = entity_counts(predicted[part], true[part], TYPES, scheme)
        for metric in metrics.values():
            metric.update(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = classification_report(true, predicted, output_dict=True, **options)
        expected = {
            "f1": f1_score(true, predicted, **options),
            "precision": precision_score(true, predicted, **options),
            "recall": recall_score(true, predicted, **options),
            "macro_f1": f1_score(true, predicted, average="macro", **options),
            **{kind: report[kind]["f1-score"] for kind in TYPES},
        }
    found = {name: float(metric.compute()) for name, metric in metrics.items()}
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0.2 < found["f1"] < 0.9


def test_types_that_never_occur_do_not_count_in_the_mean() -> None:
    counts = entity_counts([["B-PER"]], [["B-PER"]], TYPES, "conll")
    macro = EntityScore(3, of="macro")
    macro.update(counts)
    assert float(macro.compute()) == 1
    nothing = EntityScore(3)
    nothing.update(entity_counts([["O"]], [["O"]], TYPES, "conll"))
    assert float(nothing.compute()) == 0
    empty = EntityScore(3, of="macro")
    empty.update(torch.zeros(3, 3, dtype=torch.int64))
    assert float(empty.compute()) == 0


@pytest.mark.parametrize(
    ("labels", "scheme", "said"),
    [
        (["NOUN", "VERB"], "conll", "the tag 'NOUN' is not one of the scheme 'conll'"),
        (["O", "S-PER"], "IOB2", "whose tags are O, B-TYPE, I-TYPE"),
        (["O", "L-PER"], "conll", "metrics=\\['accuracy'\\]"),
    ],
)
def test_tags_of_another_scheme_are_refused(labels: list[str], scheme: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_tags(labels, scheme)
