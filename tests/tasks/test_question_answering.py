from __future__ import annotations

import json
import re
import string
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import questions, saved
from lightning.pytorch import Trainer
from small import bert
from torchmetrics.text import SQuAD

from lightning_pelt import (
    AnsweredQuestions,
    FullFineTuning,
    PELTModule,
    QuestionAnswering,
    WritePredictions,
)
from lightning_pelt.tasks.question_answering import answer_scores, candidates


def data(folder: Path, own: list[dict[str, Any]], **options: Any) -> AnsweredQuestions:
    backbone = options.pop("backbone", None) or bert(folder / "bert")
    options = {"max_length": 16, "stride": 6, "max_question_length": 2, **options}
    test = saved(folder / "test.jsonl", own)
    return AnsweredQuestions(backbone, test=test, bucketed=False, id="id", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metrics": ["em"]}, "unknown metric 'em'"),
        ({"n_best": 0}, "n_best must be at least 1"),
        ({"max_answer_length": 0}, "max_answer_length must be at least 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        QuestionAnswering(**options)


@pytest.mark.parametrize("length", [1, 3, 30])
def test_spans_are_the_best_of_all(length: int) -> None:
    torch.manual_seed(3)
    start, end = torch.randn(3, 7), torch.randn(3, 7)
    batch = {
        "starts": torch.tensor([[-1, 0, 2, 4, -1, -1, -1], [-1, -1, -1, 4, 6, 8, -1]] * 2)[:3],
        "ends": torch.tensor([[-1, 1, 3, 5, 7, 9, -1], [-1, 3, 5, 7, -1, 9, -1]] * 2)[:3],
        "row_of_window": torch.tensor([0, 0, 1]),
        "context": ["x" * 9] * 3,  # no token of the third row is of its context
    }
    found = candidates(start, end, batch, 5, length)
    for row in (0, 1):
        every = []
        for window in (batch["row_of_window"] == row).nonzero().flatten().tolist():
            for first in range(7):
                for last in range(first, min(7, first + length)):
                    begin = int(batch["starts"][window, first])
                    stop = int(batch["ends"][window, last])
                    if begin >= 0 and stop >= 0:
                        score = float(start[window, first] + end[window, last])
                        every.append((begin, stop, score))
        expected = sorted(every, key=lambda each: -each[2])[:5]
        assert [(s.start, s.end) for s in found[row]] == [each[:2] for each in expected]
        assert [s.score for s in found[row]] == pytest.approx([each[2] for each in expected])
    assert found[2] == []


def normal(text: str) -> str:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def official(predicted: str, answers: list[str]) -> tuple[float, float]:
    """F1 and exact match by the formulas of SQuAD 2.0's evaluation."""
    scores = []
    for gold in [answer for answer in answers if normal(answer)] or [""]:
        ours, theirs = normal(predicted).split(), normal(gold).split()
        same = sum((Counter(ours) & Counter(theirs)).values())
        if not ours or not theirs:
            f1 = float(ours == theirs)
        else:
            f1 = 2 * same / (len(ours) + len(theirs))
        scores.append((f1, float(ours == theirs)))
    return max(f1 for f1, _ in scores), max(exact for _, exact in scores)


CASES: list[tuple[str, list[str]]] = [
    ("the Eiffel Tower", ["Eiffel tower.", "tower"]),
    ("Paris in spring", ["Paris", "in Paris"]),
    ("", ["Paris"]),
    ("Paris", []),
    ("", []),
    ("the", ["Rome"]),
    ("Rome", ["the", "Rome!"]),
    ("", ["the"]),
]


def test_scores_are_those_of_squad() -> None:
    predicted, answers = [text for text, _ in CASES], [gold for _, gold in CASES]
    found = answer_scores(predicted, answers)
    expected = [official(*case) for case in CASES]
    assert found["f1"] == pytest.approx([f1 for f1, _ in expected])
    assert found["exact_match"] == [exact for _, exact in expected]
    answered = CASES[:3]
    metric = SQuAD()
    metric.update(
        [{"prediction_text": text, "id": str(i)} for i, (text, _) in enumerate(answered)],
        [
            {"answers": {"text": gold, "answer_start": [0] * len(gold)}, "id": str(i)}
            for i, (_, gold) in enumerate(answered)
        ],
    )
    whole = {name: float(value) / 100 for name, value in metric.compute().items()}
    assert whole["f1"] == pytest.approx(sum(found["f1"][:3]) / 3)
    assert whole["exact_match"] == pytest.approx(sum(found["exact_match"][:3]) / 3)


def test_predictions_are_spans_of_the_context(tmp_path: Path) -> None:
    own = questions(6, seed=1, most=40)
    module = data(tmp_path, own, batch_size=6)
    task = QuestionAnswering(n_best=3, max_answer_length=4, null_threshold=0.0)
    model = task.load(module.backbone).eval()
    (batch,) = module.predict_dataloader()
    assert "answers" not in batch
    with torch.no_grad():
        found = task.predict(model, batch)
        parts = task.predict(model, {**batch, "windows_at_once": 2})
    assert [row["id"] for row in found] == [row["id"] for row in own]
    assert [row["text"] for row in parts] == [row["text"] for row in found]
    for row, prediction in zip(own, found, strict=True):
        best = prediction["n_best"]
        assert best[0] == {key: prediction[key] for key in ("text", "start", "end", "score")}
        assert 1 <= len(best) <= 3
        assert sum(each["score"] for each in best) <= 1 + 1e-6
        for answer in best:
            text = row["context"][answer["start"] : answer["end"]]
            assert answer["text"] == text == text.strip()
            assert len(text.split()) <= 4


class Outputs:
    """Two rows of two tokens of context: ``<cls> a b``."""

    start_logits = torch.tensor([[1.0, 2.0, 0.0], [9.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    end_logits = torch.tensor([[1.0, 0.0, 1.5], [9.0, 0.0, 1.0], [2.0, 0.0, 0.0]])


BATCH = {
    "starts": torch.tensor([[-1, 0, 2], [-1, 4, 6], [-1, 0, 2]]),
    "ends": torch.tensor([[-1, 1, 3], [-1, 5, 7], [-1, 1, 3]]),
    "null_positions": torch.tensor([0, 0, 0]),
    "start_positions": torch.tensor([0, 0, 0]),
    "row_of_window": torch.tensor([0, 0, 1]),
    "context": ["a b c d", "a b"],
    "answers": [["a b"], []],
}


@pytest.mark.parametrize(
    ("threshold", "texts"),
    [(None, ["a b", "a"]), (0.0, ["a b", ""]), (5.0, ["a b", "a"]), (-2.0, ["", ""])],
)
def test_no_answer_must_be_better_by_the_threshold(
    threshold: float | None, texts: list[str]
) -> None:
    """Row 1: no answer 2 (the lowest of its windows), best 3.5. Row 2: no answer 5, best 0."""
    task = QuestionAnswering(null_threshold=threshold)
    found = task._rows(BATCH, Outputs())
    assert [row["text"] for row in found] == texts
    spans = [row[key] for row in found for key in ("start", "end")]
    assert spans == [0, len(texts[0]), 0, len(texts[1])]
    assert all(0 < row["score"] < 1 for row in found)


def test_metrics_are_means_over_rows() -> None:
    task = QuestionAnswering(null_threshold=0.0)
    metrics = task.build_metrics()
    task.update(metrics, None, BATCH, Outputs())  # type: ignore[arg-type]
    task.update(metrics, None, {**BATCH, "answers": [["b"], ["b"]]}, Outputs())  # type: ignore[arg-type]
    values = {name: float(value) for name, value in metrics.compute().items()}
    # "a b" is "b" after normalisation: right, right; then right, and "" is wrong
    assert values == pytest.approx({"f1": 0.75, "exact_match": 0.75})


def test_unanswerable_rows_without_a_threshold_are_noticed() -> None:
    task = QuestionAnswering()
    with pytest.warns(UserWarning, match="some questions have no answer"):
        task.update(task.build_metrics(), None, BATCH, Outputs())  # type: ignore[arg-type]


def test_a_row_without_a_readable_token_has_no_answer() -> None:
    batch = {**BATCH, "starts": torch.full((3, 3), -1)}
    found = QuestionAnswering()._rows(batch, Outputs())
    assert found == [{"text": "", "start": 0, "end": 0, "score": 1.0}] * 2
    with pytest.raises(ValueError, match="with a data module such as AnsweredQuestions"):
        QuestionAnswering()._rows({}, Outputs())


@pytest.mark.slow
def test_a_tiny_model_learns_and_writes_a_line_per_row(tmp_path: Path) -> None:
    own = questions(24, seed=8, most=40)
    module_data = data(
        tmp_path,
        own,
        train=saved(tmp_path / "train.jsonl", questions(300, seed=7)),
        batch_size=16,
    )
    module = PELTModule(
        module_data.backbone,
        FullFineTuning(),
        QuestionAnswering(null_threshold=0.0),
        lr=3e-3,
    )
    trainer = Trainer(
        max_epochs=10,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[WritePredictions(str(tmp_path / "lines.jsonl"))],
    )
    trainer.fit(module, module_data)
    (tested,) = trainer.test(module, module_data, verbose=False)
    assert tested["test/exact_match"] > 0.9
    trainer.predict(module, module_data)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(24))
    exact = [
        official(line["text"], row["answers"]["text"])[1]
        for line, row in zip(lines, own, strict=True)
    ]
    assert tested["test/exact_match"] == pytest.approx(sum(exact) / 24)
