from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import COLOURS, saved, sets
from lightning.pytorch import Trainer
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, roc_auc_score
from small import bert
from transformers import pipeline

from lightning_pelt import FullFineTuning, MultiLabel, MultiLabelText, PELTModule, WritePredictions
from lightning_pelt.utils.backbone import load_tokenizer

EVERY = ("micro_f1", "macro_f1", "subset_accuracy", "map", "auroc")


class Outputs:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_metrics_are_those_of_sklearn(threshold: float) -> None:
    draw = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(40, 3, generator=draw)
    true = (logits + 3 * torch.randn(40, 3, generator=draw) > 0).long()
    task = MultiLabel(metrics=EVERY, threshold=threshold)
    metrics = task.build_metrics(COLOURS).clone(prefix="val/")
    for part in (slice(0, 1), slice(1, 40)):
        task.update(metrics, None, {"labels": true[part]}, Outputs(logits[part]))  # type: ignore[arg-type]
    shares, right = logits.sigmoid().numpy(), true.numpy()
    guesses = (shares > threshold).astype(int)
    expected = {
        "val/micro_f1": f1_score(right, guesses, average="micro"),
        "val/macro_f1": f1_score(right, guesses, average="macro"),
        "val/subset_accuracy": accuracy_score(right, guesses),
        "val/map": average_precision_score(right, shares, average="macro"),
        "val/auroc": roc_auc_score(right, shares, average="macro"),
    }
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found == pytest.approx(expected, abs=1e-5)


def test_labels_that_no_row_has_are_left_out() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [-2.0, 1.0, 0.1], [1.0, 0.5, 0.0]])
    true = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    task = MultiLabel(metrics=("map", "auroc"))
    metrics = task.build_metrics(COLOURS)
    task.update(metrics, None, {"labels": true}, Outputs(logits))  # type: ignore[arg-type]
    found = {name: float(value) for name, value in metrics.compute().items()}
    right, shares = true[:, :2].numpy(), logits[:, :2].sigmoid().numpy()
    expected = {
        "map": average_precision_score(right, shares),
        "auroc": roc_auc_score(right, shares),
    }
    assert found == pytest.approx(expected)


def test_nothing_to_rank_is_0() -> None:
    task = MultiLabel(metrics=("map", "auroc"))
    metrics = task.build_metrics(COLOURS)
    task.update(metrics, None, {"labels": torch.zeros(2, 3).long()}, Outputs(torch.zeros(2, 3)))  # type: ignore[arg-type]
    assert {name: float(value) for name, value in metrics.compute().items()} == {
        "map": 0,
        "auroc": 0,
    }


def test_the_loss_is_the_cross_entropy_of_each_label_in_fp32(tmp_path: Path) -> None:
    task, backbone = MultiLabel(), bert(tmp_path / "bert")
    model = task.load(backbone, labels=COLOURS, dtype=torch.bfloat16).eval()
    batch = dict(load_tokenizer(backbone)(["red one", "two"], return_tensors="pt", padding=True))
    batch["labels"] = torch.tensor([[0, 0, 1], [0, 0, 0]])
    loss, outputs = task.step(model, batch)
    assert loss.dtype == torch.float32
    shares = 1 / (1 + np.exp(-outputs.logits.detach().float().numpy()))
    right = batch["labels"].numpy()
    expected = -(right * np.log(shares) + (1 - right) * np.log(1 - shares)).mean()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_predictions_are_those_of_the_pipeline(tmp_path: Path) -> None:
    task, backbone = MultiLabel(threshold=0.4), bert(tmp_path / "bert")
    model = task.load(backbone, labels=COLOURS).eval()
    assert model.config.problem_type == "multi_label_classification"
    assert model.config.id2label == dict(enumerate(COLOURS))
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    tokenizer = load_tokenizer(backbone)
    texts = ["red one", "two", "blue green yes"]
    batch = dict(tokenizer(texts, return_tensors="pt", padding=True))
    with torch.no_grad():
        found = task.predict(model, batch)
    pipe: Any = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    for row, scores in zip(found, pipe(texts), strict=True):
        shares = {each["label"]: each["score"] for each in scores}
        assert row["probabilities"] == pytest.approx(shares, abs=1e-5)
        assert row["labels"] == [name for name in COLOURS if shares[name] > 0.4]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_threshold_is_between_0_and_1(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must be between 0 and 1"):
        MultiLabel(threshold=threshold)


def test_labels_are_checked() -> None:
    with pytest.raises(ValueError, match="for a yes or no use Classification"):
        MultiLabel().head(["one"])
    with pytest.raises(ValueError, match="pass labels="):
        MultiLabel().build_metrics()
    with pytest.raises(ValueError, match="the module has the labels"):
        MultiLabel().check_labels(COLOURS, COLOURS[::-1])


@pytest.mark.slow
def test_a_tiny_model_learns_and_writes_a_line_per_row(tmp_path: Path) -> None:
    own = sets(21, seed=2)
    data = MultiLabelText(
        bert(tmp_path / "bert"),
        train=saved(tmp_path / "train.jsonl", sets(400, seed=1)),
        test=saved(tmp_path / "test.jsonl", own),
        max_length=16,
        batch_size=16,
    )
    task = MultiLabel(metrics=EVERY)
    module = PELTModule(data.backbone, FullFineTuning(), task, labels=data.labels, lr=3e-3)
    trainer = Trainer(
        max_epochs=8,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[WritePredictions(str(tmp_path / "lines.jsonl"))],
    )
    trainer.fit(module, data)
    (tested,) = trainer.test(module, data, verbose=False)
    assert tested["test/micro_f1"] > 0.9
    trainer.predict(module, data)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    right = [line["labels"] == row["labels"] for line, row in zip(lines, own, strict=True)]
    assert tested["test/subset_accuracy"] == pytest.approx(sum(right) / 21)
