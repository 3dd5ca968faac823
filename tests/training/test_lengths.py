"""Rows that are longer than the table of positions are refused before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from small import LABELS, Sentences, bert, gpt2
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoModelForSequenceClassification

from lightning_pelt import CausalLM, LoRA, PELTCallback, PELTModule, Plan, Prompt
from lightning_pelt.data import GLUE, CausalText, TextClassification, TextToText

PLAN = Plan.uniform(LoRA(r=2))


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        **{"max_epochs": 1, **options},
        callbacks=list(callbacks),
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def claims_nothing(folder: str) -> str:
    """The backbone with a tokenizer that does not know the limit of the model."""
    path = Path(folder) / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["model_max_length"]
    path.write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (TextClassification, {}, "max_length is 128, but .* takes at most 32 tokens"),
        (CausalText, {}, "max_length is 128, but .* takes at most 32 tokens"),
        (GLUE, {"task": "rte", "max_length": 33}, "max_length is 33, but .* at most 32"),
        (TextToText, {"max_length": 9, "max_target_length": 33}, "max_target_length is 33"),
    ],
)
def test_a_data_module_knows_the_limit_that_the_tokenizer_does_not(
    tmp_path: Path, kind: Any, options: dict[str, Any], message: str
) -> None:
    backbone = claims_nothing(bert(tmp_path))
    rows = {} if kind is GLUE else {"train": "rows.jsonl"}
    with pytest.raises(ValueError, match=message):
        _ = kind(backbone, **rows, **options).tokenizer


class OneLong(Sentences):
    """Sentences of which one has 31 words and the end of the text."""

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        rows["text"][-1] = " ".join(["one"] * 31)
        return super().encode(rows, split)


@pytest.mark.slow
def test_the_positions_of_a_prompt_count_and_the_longest_row_is_known_before_the_first_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = bert(tmp_path)
    seen: list[Any] = []
    monkeypatch.setattr(PELTModule, "on_train_batch_start", lambda *batch: seen.append(batch))

    def fit(plan: Plan, **options: Any) -> None:
        module = PELTModule(backbone, plan, labels=LABELS)
        trainer(tmp_path, num_sanity_val_steps=0).fit(module, OneLong(backbone, **options))

    with pytest.raises(ValueError, match=r"longest row of \w+ has 32 tokens.*max_length=28"):
        fit(Plan.uniform(Prompt(length=4)))
    assert not seen
    fit(PLAN)
    assert seen


class Strange(LightningModule):
    """A stranger's module: it may cut its rows, and may call the model's body alone."""

    def __init__(self, backbone: str, cut: int | None = None, head: bool = True) -> None:
        super().__init__()
        auto = AutoModelForSequenceClassification if head else AutoModel
        self.net = auto.from_pretrained(backbone)
        self.cut, self.head = cut, head

    def training_step(self, batch: dict[str, torch.Tensor], _index: int) -> torch.Tensor:
        ids = batch["input_ids"][:, : self.cut]
        return self.net(ids)[0].sum() if self.head else self.net(input_ids=ids)[0].sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=1e-3)


@pytest.mark.parametrize("head", [True, False])
def test_a_strangers_rows_are_checked_where_they_reach_the_model(
    tmp_path: Path, head: bool
) -> None:
    backbone = bert(tmp_path)
    long = DataLoader([{"input_ids": torch.full((33,), 5)}] * 2)
    module = Strange(backbone, head=head)
    hooks = len(module.net.base_model._forward_pre_hooks)
    with pytest.raises(ValueError, match=r"33 tokens.*positions for 32: cut rows to 32 tokens"):
        trainer(tmp_path, PELTCallback(PLAN)).fit(module, long)
    module.cut = 32
    trainer(tmp_path, PELTCallback(PLAN)).fit(module, long)
    assert len(module.net.base_model._forward_pre_hooks) == hooks


def test_a_batch_of_any_loader_is_checked_in_training_and_prediction(tmp_path: Path) -> None:
    backbone = bert(tmp_path)
    rows = [{"input_ids": torch.full((33,), 5), "labels": torch.tensor(1)}] * 2
    module = PELTModule(backbone, PLAN, labels=LABELS)
    with pytest.raises(ValueError, match="33 tokens"):
        trainer(tmp_path).fit(module, DataLoader(rows))
    with pytest.raises(ValueError, match="33 tokens"):
        trainer(tmp_path).predict(module, DataLoader(rows))


def test_generation_ends_at_the_last_position(tmp_path: Path) -> None:
    backbone = gpt2(tmp_path)
    task = CausalLM(max_new_tokens=50)
    module = PELTModule(backbone, PLAN, task)
    module.configure_model()
    assert module.model is not None
    module.model.generation_config.eos_token_id = None  # nothing else ends the text
    written = [
        task.predict(
            module.model,
            {"input_ids": torch.full((1, given), 5)},
            tokenizer=module.tokenizer,
        )[0]["text"].split()
        for given in (10, 60)
    ]
    assert len(written[0]) <= 50
    assert len(written[1]) <= 4
    with pytest.raises(ValueError, match="64 tokens, and the model has 64 positions"):
        task.predict(
            module.model, {"input_ids": torch.full((1, 64), 5)}, tokenizer=module.tokenizer
        )
