"""Multiple choice: the loss is transformers', gates pool per choice, and a tiny model learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from choices import questions
from lightning.pytorch import Trainer, seed_everything
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from small import bert

from lightning_pelt import (
    HeadOnly,
    LoRA,
    MultipleChoice,
    PELTModule,
    Plan,
    Prompt,
    TextChoices,
    UniPELT,
    WritePredictions,
    attach,
)
from lightning_pelt.methods.config import rebuild
from lightning_pelt.tasks._several_texts import flat_inputs
from lightning_pelt.testing import awaken

TASK = MultipleChoice(metrics=("accuracy", "macro_accuracy"))


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return bert(tmp_path / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def batch_of(backbone: str, path: str, **options: Any) -> dict[str, Any]:
    data = TextChoices(backbone, test=path, max_length=16, bucketed=False, **options)
    return next(iter(data.test_dataloader()))


def test_loss_and_scores_are_those_of_transformers(backbone: str, tmp_path: Path) -> None:
    batch = batch_of(backbone, questions(tmp_path / "q.jsonl", count=5, fixed=3))
    model = TASK.load(backbone)
    loss, outputs = TASK.step(model, batch)
    expected = model(**{name: value for name, value in batch.items() if name != "present"})
    assert loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    torch.testing.assert_close(outputs.logits, expected.logits)


@pytest.mark.parametrize(
    "plan", [UniPELT(), Plan.uniform(Prompt(length=3), LoRA())], ids=["unipelt", "prompt"]
)
def test_each_choice_is_scored_as_if_alone(backbone: str, tmp_path: Path, plan: Plan) -> None:
    """Also where transformers flattens the choices: gates pool over the tokens of one choice."""
    batch = batch_of(backbone, questions(tmp_path / "q.jsonl", count=4))
    model = TASK.load(backbone)
    awaken(attach(model, plan))
    tokens = {n: v for n, v in batch.items() if n not in ("present", "labels")}
    with torch.no_grad():
        _, outputs = TASK.step(model, batch)
        whole = model(**tokens).logits
        for row, present in enumerate(batch["present"]):
            for choice in range(len(present)):
                length = int(batch["attention_mask"][row, choice].sum())
                alone = {n: v[row, choice, :length][None, None] for n, v in tokens.items()}
                score = model(**alone).logits.item()
                assert whole[row, choice].item() == pytest.approx(score, abs=1e-5)
                found = outputs.logits[row, choice].item()
                assert found == (pytest.approx(score, abs=1e-5) if present[choice] else -torch.inf)


def test_missing_choices_are_in_neither_loss_nor_gradient(backbone: str, tmp_path: Path) -> None:
    batch = batch_of(backbone, questions(tmp_path / "q.jsonl", count=6))
    assert not batch["present"].all()
    model = TASK.load(backbone)
    loss, outputs = TASK.step(model, batch)
    each = [
        torch.nn.functional.cross_entropy(scores[here][None], label[None])
        for scores, here, label in zip(
            outputs.logits, batch["present"], batch["labels"], strict=True
        )
    ]
    assert loss.item() == pytest.approx(torch.stack(each).mean().item(), abs=1e-6)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_metrics_agree_with_scikit_learn() -> None:
    draw = torch.Generator().manual_seed(0)
    metrics = TASK.build_metrics()
    choices, answers = [], []
    for _ in range(3):
        logits = torch.randn(20, 4, generator=draw)
        labels = torch.randint(0, 3, (20,), generator=draw)  # the last place is never right
        outputs = type("Outputs", (), {"logits": logits})
        TASK.update(metrics, None, {"labels": labels}, outputs)  # type: ignore[arg-type]
        choices += logits.argmax(-1).tolist()
        answers += labels.tolist()
    found = metrics.compute()
    assert found["accuracy"].item() == pytest.approx(accuracy_score(answers, choices))
    balanced = balanced_accuracy_score([*answers], choices)
    assert found["macro_accuracy"].item() == pytest.approx(balanced)
    with pytest.raises(ValueError, match="choice 201 is the answer of a row: use accuracy"):
        metrics["macro_accuracy"].update(torch.tensor([0]), torch.tensor([200]))


def test_options() -> None:
    assert rebuild(TASK.to_config()) == TASK
    assert (TASK.monitor, TASK.mode) == ("accuracy", "max")
    with pytest.raises(ValueError, match="unknown metric 'acuracy': did you mean 'accuracy'"):
        MultipleChoice(metrics=("acuracy",))


def test_a_batch_of_one_value_per_row_reaches_every_choice() -> None:
    batch = {
        "input_ids": torch.arange(12).view(2, 3, 2),
        "present": torch.tensor([[True, True, False], [True, True, True]]),
        "profile": torch.tensor([7, 8]),
        "labels": torch.tensor([0, 1]),
    }
    inputs = flat_inputs(batch)
    assert inputs["input_ids"].tolist() == [[0, 1], [2, 3], [6, 7], [8, 9], [10, 11]]
    assert inputs["profile"].tolist() == [7, 7, 8, 8, 8]
    assert inputs.keys() == {"input_ids", "profile"}


@pytest.mark.slow
def test_the_word_of_the_question_is_learned(backbone: str, tmp_path: Path) -> None:
    seed_everything(0)
    train = questions(tmp_path / "train.jsonl", count=256)
    test = questions(tmp_path / "test.jsonl", count=24, seed=1)
    data = TextChoices(backbone, train=train, test=test, batch_size=16, max_length=16)
    module = PELTModule(backbone, UniPELT(), MultipleChoice(), lr=1e-2, lrs={"head": 1e-2})
    trainer = Trainer(
        max_epochs=12,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[WritePredictions(str(tmp_path / "answers.jsonl"))],
    )
    trainer.fit(module, data)
    scores = trainer.test(module, data, verbose=False)[0]
    assert scores["test/accuracy"] >= 0.8  # at random 0.36
    trainer.predict(module, data)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in Path(test).read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(24))
    for line, row in zip(lines, rows, strict=True):
        assert line["choice"] == row["choices"][line["index"]]
        assert len(line["probabilities"]) == len(row["choices"])
        assert sum(line["probabilities"]) == pytest.approx(1, abs=1e-5)
    right = [line["choice"] == row["question"] for line, row in zip(lines, rows, strict=True)]
    assert sum(right) / 24 == pytest.approx(scores["test/accuracy"], abs=1e-6)


def test_the_head_is_trained_alone(backbone: str) -> None:
    attachment = attach(TASK.load(backbone), HeadOnly())
    trained = {n for n, p in attachment.model.named_parameters() if p.requires_grad}
    assert "classifier.weight" in trained
