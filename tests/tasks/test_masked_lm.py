"""Masked language modelling: transformers' loss and fills, and a tiny model learns to count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from masked import CIRCLE, circles, mask_bert
from transformers import pipeline

from lightning_pelt import (
    Gate,
    LoRA,
    MaskedLM,
    MaskedText,
    PELTModule,
    Plan,
    WritePredictions,
)
from lightning_pelt.methods.config import rebuild
from lightning_pelt.utils.backbone import load_tokenizer

TASK = MaskedLM()


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return mask_bert(tmp_path / "bert")


def batches(backbone: str, path: str, **options: Any) -> list[dict[str, torch.Tensor]]:
    data = MaskedText(backbone, test=path, max_length=24, batch_size=5, join=False, **options)
    return list(data.test_dataloader())


def test_loss_perplexity_and_accuracy(backbone: str, tmp_path: Path) -> None:
    model = TASK.load(backbone)
    metrics = TASK.build_metrics()
    losses, right, hidden = 0.0, 0, 0
    for batch in batches(backbone, circles(tmp_path / "t.jsonl", count=12)):
        with torch.no_grad():
            loss, outputs = TASK.step(model, batch)
            expected = model(**batch)
        assert loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
        TASK.update(metrics, model, batch, outputs)
        number = int((batch["labels"] != -100).sum())
        losses, hidden = losses + expected.loss.item() * number, hidden + number
        right += int((expected.logits.argmax(-1) == batch["labels"]).sum())
    found = metrics.compute()
    assert found["perplexity"].log().item() == pytest.approx(losses / hidden, abs=1e-5)
    assert found["accuracy"].item() == pytest.approx(right / hidden)


def test_a_batch_without_hidden_tokens_has_loss_and_gradients_0(backbone: str) -> None:
    model = TASK.load(backbone)
    ids = torch.tensor([[1, 5, 6, 2]])
    loss, _ = TASK.step(model, {"input_ids": ids, "labels": torch.full_like(ids, -100)})
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_fills_are_those_of_the_pipeline(backbone: str) -> None:
    model, tokenizer = TASK.load(backbone), load_tokenizer(backbone)
    texts = ["one [MASK] three", "[MASK] five [MASK] red green"]
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False))
    with torch.no_grad():
        rows = MaskedLM(top_k=3).predict(model, batch, tokenizer=tokenizer)
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=3)
    for row, expected in zip(rows, [[fill(texts[0])], fill(texts[1])], strict=True):
        assert len(row["fills"]) == len(expected)
        for fills, others in zip(row["fills"], expected, strict=True):
            assert [f["token"] for f in fills] == [other["token_str"] for other in others]
            assert [f["probability"] for f in fills] == pytest.approx(
                [other["score"] for other in others], abs=1e-5
            )
    with pytest.raises(ValueError, match="pass tokenizer="):
        TASK.predict(model, batch)
    plain = dict(tokenizer(["one two"], return_tensors="pt"))
    assert TASK.predict(model, plain, tokenizer=tokenizer) == [{"text": "one two", "fills": []}]


def test_options() -> None:
    task = MaskedLM(metrics=("accuracy",), top_k=2)
    assert rebuild(task.to_config()) == task
    assert (task.monitor, task.mode, TASK.mode) == ("accuracy", "max", "min")
    with pytest.raises(ValueError, match="top_k is 0"):
        MaskedLM(top_k=0)
    with pytest.raises(ValueError, match="unknown metric 'perplexty': did you mean 'perplexity'"):
        MaskedLM(metrics=("perplexty",))


def fit(folder: Path, backbone: str, **options: Any) -> tuple[Trainer, PELTModule, MaskedText]:
    seed_everything(0)
    train, test = circles(folder / "train.jsonl", count=256), circles(folder / "t.jsonl", seed=1)
    data = MaskedText(backbone, train=train, test=test, batch_size=16, max_length=24, join=False)
    plan = Plan.uniform(LoRA(r=8, sites=("*attention.*", "ffn.*"), gate=Gate()))
    module = PELTModule(backbone, plan, TASK, lr=1e-2)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        **options,
    )
    return trainer, module, data


@pytest.mark.nightly
def test_counting_is_learned(backbone: str, tmp_path: Path) -> None:
    callback = WritePredictions(str(tmp_path / "fills.jsonl"))
    trainer, module, data = fit(tmp_path, backbone, max_epochs=18, callbacks=[callback])
    trainer.fit(module, data)
    scores = trainer.test(module, data, verbose=False)[0]
    assert scores["test/perplexity"] < 3  # at random about 16
    assert scores["test/accuracy"] > 0.6
    rows = [f"{CIRCLE[i]} {CIRCLE[(i + 1) % 6]} [MASK] {CIRCLE[(i + 3) % 6]}" for i in range(6)]
    path = tmp_path / "fill.jsonl"
    path.write_text("\n".join(json.dumps({"text": row}) for row in rows))
    trainer.predict(module, MaskedText(backbone, predict=str(path), max_length=24))
    lines = [json.loads(line) for line in (tmp_path / "fills.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(6))
    best = [line["fills"][0][0]["token"] for line in lines]
    right = [found == CIRCLE[(i + 2) % 6] for i, found in enumerate(best)]
    assert sum(right) >= 5


class Seen(Callback):
    """Keeps the tokens of the training batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(batch["input_ids"].flatten().tolist())


@pytest.mark.slow
def test_a_resumed_run_sees_the_same_masks(backbone: str, tmp_path: Path) -> None:
    whole, first, rest = Seen(), Seen(), Seen()
    trainer, module, data = fit(tmp_path, backbone, max_steps=24, callbacks=[whole])
    trainer.fit(module, data)
    trainer, module, data = fit(tmp_path, backbone, max_steps=20, callbacks=[first])
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "part.ckpt")
    trainer, module, data = fit(tmp_path, backbone, max_steps=24, callbacks=[rest])
    trainer.fit(module, data, ckpt_path=tmp_path / "part.ckpt")
    assert len(rest.batches) == 4
    assert first.batches + rest.batches == whole.batches
