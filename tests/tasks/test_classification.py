from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lightning_pelt.tasks import Classification
from lightning_pelt.utils.backbone import load_tokenizer

LABELS = ["entailment", "not_entailment"]


def pairs(folder: str, rows: int = 3, labels: list[int] | None = None) -> dict[str, torch.Tensor]:
    first = ["a dog runs", "it rains in Paris today", "no"][:rows]
    second = ["an animal moves", "it is dry", "yes"][:rows]
    batch = dict(load_tokenizer(folder)(first, second, padding=True, return_tensors="pt"))
    return batch if labels is None else {**batch, "labels": torch.tensor(labels)}


def test_the_model_carries_the_label_names(bert: str) -> None:
    model = Classification().load(bert, labels=LABELS)
    assert model.config.id2label == {0: "entailment", 1: "not_entailment"}
    assert model.config.label2id == {"entailment": 0, "not_entailment": 1}
    assert model.config.num_labels == 2
    assert model.config.problem_type == "single_label_classification"


@pytest.mark.parametrize(("labels", "said"), [(None, "pass labels="), (["a", "a"], "must differ")])
def test_labels_must_be_given_and_differ(bert: str, labels: list[str] | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Classification().load(bert, labels=labels)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_smoothed_cross_entropy(bert: str, smoothing: float) -> None:
    task = Classification(label_smoothing=smoothing)
    model = task.load(bert, labels=["a", "b", "c"])
    torch.nn.init.normal_(model.classifier.weight, std=2.0)  # even logits would hide smoothing
    batch = pairs(bert, labels=[2, 0, 1])
    loss, outputs = task.step(model, batch)
    by_hand = 0.0
    for row, label in zip(outputs.logits.tolist(), [2, 0, 1], strict=True):
        normaliser = math.log(sum(math.exp(x) for x in row))
        target = [smoothing / 3 + (1 - smoothing) * (i == label) for i in range(3)]
        by_hand -= sum(t * (x - normaliser) for t, x in zip(target, row, strict=True)) / 3
    assert float(loss) == pytest.approx(by_hand, rel=1e-5)
    loss.backward()
    assert model.classifier.weight.grad.abs().sum() > 0


def test_label_smoothing_is_a_share() -> None:
    with pytest.raises(ValueError, match=r"from 0 to 1, not 1\.5"):
        Classification(label_smoothing=1.5)


class Answers:
    """A model whose predictions are known: ``outputs.logits`` are one-hot."""

    def __init__(self, predicted: list[int], classes: int) -> None:
        self.logits = torch.nn.functional.one_hot(torch.tensor(predicted), classes).float()


def scores(
    task: Classification, labels: list[str], predicted: list[int], true: list[int]
) -> dict[str, float]:
    metrics = task.build_metrics(labels).clone(prefix="val/")
    for part in (slice(0, 1), slice(1, None)):  # a batch of one row, and the rest
        outputs = Answers(predicted[part], len(labels))
        task.update(metrics, None, {"labels": torch.tensor(true[part])}, outputs)  # type: ignore[arg-type]
    return {k.removeprefix("val/"): float(v) for k, v in metrics.compute().items()}


@pytest.mark.parametrize(
    "predicted",
    [
        [1, 0, 1, 1, 0, 1, 0, 0, 1, 1],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ],
    ids=["mixed", "all one", "all zero"],
)
def test_two_label_metrics_agree_with_sklearn(predicted: list[int]) -> None:
    true = [1, 0, 0, 1, 1, 1, 0, 1, 0, 1]
    task = Classification(metrics=("accuracy", "f1", "matthews", "macro_f1"))
    assert scores(task, LABELS, predicted, true) == pytest.approx(
        {
            "accuracy": accuracy_score(true, predicted),
            "f1": f1_score(true, predicted),
            "matthews": matthews_corrcoef(true, predicted),
            "macro_f1": f1_score(true, predicted, average="macro"),
        },
        abs=1e-6,
    )


def test_many_label_metrics_agree_with_sklearn() -> None:
    true, predicted = [0, 1, 2, 2, 1, 0, 2], [0, 2, 2, 1, 1, 0, 0]  # the fourth never occurs
    task = Classification(metrics=("accuracy", "matthews", "macro_f1"))
    assert scores(task, ["a", "b", "c", "never"], predicted, true) == pytest.approx(
        {
            "accuracy": accuracy_score(true, predicted),
            "matthews": matthews_corrcoef(true, predicted),
            "macro_f1": f1_score(true, predicted, average="macro"),
        },
        abs=1e-6,
    )


def test_f1_of_many_labels_points_to_macro_f1() -> None:
    with pytest.raises(ValueError, match="there are 3: use 'macro_f1'"):
        Classification(metrics=("f1",)).build_metrics(["a", "b", "c"])


def test_predictions_are_names_with_probabilities(bert: str) -> None:
    task = Classification()
    model = task.load(bert, labels=LABELS)
    batch = pairs(bert)
    with torch.no_grad():
        rows = task.predict(model, batch, labels=LABELS)
        logits = model(**batch).logits.tolist()
    assert len(rows) == 3
    for row, (a, b) in zip(rows, logits, strict=True):
        expected = 1 / (1 + math.exp(b - a))
        assert row["probabilities"]["entailment"] == pytest.approx(expected, rel=1e-5)
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["label"] == LABELS[int(b > a)]


def test_prediction_needs_no_labels_and_takes_one_row(bert: str) -> None:
    task = Classification()
    model = task.load(bert, labels=LABELS)
    with torch.no_grad():
        named = task.predict(model, pairs(bert, rows=1), labels=LABELS)
        labelled = task.predict(model, pairs(bert, rows=1, labels=[1]))
    assert named == labelled
    assert len(named) == 1


def test_a_decoder_without_padding_classifies_batches(gpt2: str, encode: object) -> None:
    task = Classification()
    model = task.load(gpt2, labels=LABELS).eval()
    batch = encode(["one two", "red green blue yes no"])  # type: ignore[operator]
    alone = encode(["one two"])  # type: ignore[operator]
    with torch.no_grad():
        together, single = model(**batch).logits[0], model(**alone).logits[0]
    assert torch.allclose(together, single, atol=1e-6)
