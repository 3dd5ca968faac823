"""Targets that a task would misread are refused before the first epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from small import LABELS, Sentences, bert

from lightning_pelt import Classification, LoRA, PELTModule, Plan, Regression
from lightning_pelt.data import TextClassification


def fit(folder: Path, module: Any, data: Any, **options: Any) -> Trainer:
    trainer = Trainer(
        **{"max_epochs": 1, **options},
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, data)
    return trainer


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return bert(tmp_path / "bert")


def module(backbone: str, task: Any, labels: list[str] | None = None) -> PELTModule:
    return PELTModule(backbone, Plan.uniform(LoRA(r=2)), task, labels=labels)


@pytest.fixture
def never_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("a step was taken")

    for name in ("training_step", "validation_step"):
        monkeypatch.setattr(PELTModule, name, fail)


@pytest.mark.usefixtures("never_trained")
@pytest.mark.parametrize("given", [None, LABELS])
def test_a_regression_of_labels_is_refused(
    tmp_path: Path, backbone: str, given: list[str] | None
) -> None:
    with pytest.raises(ValueError, match=r"predicts numbers.*the labels 'low', 'middle', 'high'"):
        fit(tmp_path, module(backbone, Regression(), given), Sentences(backbone))


@pytest.mark.usefixtures("never_trained")
def test_a_regression_of_labels_with_any_data_is_refused(tmp_path: Path, backbone: str) -> None:
    loader = Sentences(backbone).train_dataloader()
    with pytest.raises(ValueError, match="predicts numbers"):
        fit(tmp_path, module(backbone, Regression(), LABELS), loader)


@pytest.mark.usefixtures("never_trained")
def test_a_regression_of_words_in_a_file_is_refused(tmp_path: Path, backbone: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\none,1.5\ntwo,high\n")
    data = TextClassification(
        backbone, train=str(path), dev_share=0, max_length=32, task="regression"
    )
    with pytest.raises(ValueError, match=r"rows\.csv, row 2, column 'label': 'high' is not a num"):
        fit(tmp_path, module(backbone, Regression()), data)


@pytest.mark.usefixtures("never_trained")
def test_labels_in_another_order_are_refused(tmp_path: Path, backbone: str) -> None:
    with pytest.raises(ValueError, match=r"module has the labels \['high', 'middle', 'low'\]"):
        fit(tmp_path, module(backbone, Classification(), LABELS[::-1]), Sentences(backbone))


@pytest.mark.slow
def test_numbers_and_labels_in_their_order_train(tmp_path: Path, backbone: str) -> None:
    for task, labels, target in (
        (Regression(metrics=("mse",)), None, "value"),
        (Classification(), LABELS, "label"),
    ):
        run = fit(tmp_path, module(backbone, task, labels), Sentences(backbone, target=target))
        assert run.global_step == 5


def test_a_single_label_is_told_with_the_file(tmp_path: Path, backbone: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": "one", "label": "low"}) for _ in range(4)))
    for labels in (None, LABELS):
        data = TextClassification(
            backbone, train=str(path), dev_share=0, max_length=32, labels=labels
        )
        with pytest.warns(UserWarning, match=r"rows\.jsonl, column 'label': all .* label 'low'"):
            data.setup("fit")


def test_a_single_label_is_told_with_any_data(backbone: str) -> None:
    with pytest.warns(UserWarning, match="there is one label, 'low'.*nothing is learned"):
        module(backbone, Classification(), ["low"]).configure_model()


def test_no_training_batches_is_told_by_its_name(tmp_path: Path, backbone: str) -> None:
    with pytest.warns(UserWarning, match="limit_train_batches is 0, so nothing is trained"):
        run = fit(
            tmp_path,
            module(backbone, Classification(), LABELS),
            Sentences(backbone),
            limit_train_batches=0,
        )
    assert run.global_step == 0
