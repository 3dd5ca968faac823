"""Instruction tuning of a pretrained decoder: it learns to answer, and to stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat import saved
from lightning.pytorch import Trainer
from pretrained import BANKING77, chapters, intents, pretrain

from lightning_pelt import CausalLM, ChatText, LoRA, PELTModule, Plan, UniPELT, WritePredictions

# A recipe trains on chats in CI; that it learns is checked here.
pytestmark = pytest.mark.nightly

LINEAR = ("query", "key", "value", "output", "ffn.in", "ffn.out")


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pretrain(tmp_path_factory.mktemp("decoder"), steps=200)


def scores(
    decoder: str, folder: Path, plan: Plan, chats: dict[str, list[Any]], **options: Any
) -> tuple[dict[str, float], dict[str, float]]:
    """What a test logs before and after tuning."""
    places = {split: saved(folder / f"{split}.jsonl", rows) for split, rows in chats.items()}
    epochs = options.pop("epochs")
    data = ChatText(
        decoder,
        **places,
        dev_share=0,
        chat_template="zephyr",
        max_length=128,
        eval_batch_size=64,
        **options,
    )
    task = CausalLM(("exact_match",), max_new_tokens=12)
    module = PELTModule(decoder, plan, task, lr=2e-3, warmup=0.1)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    (before,) = trainer.test(module, data, verbose=False)
    trainer.fit(module, data)
    (after,) = trainer.test(module, data, verbose=False)
    check_predictions(trainer, module, data, [chat[-1]["content"] for chat in chats["test"]], after)
    return dict(before), dict(after)


def check_predictions(
    trainer: Trainer, module: PELTModule, data: ChatText, answers: list[str], scores: Any
) -> None:
    """The predictions of the test rows are right as often as ``exact_match`` says."""
    folder = Path(trainer.default_root_dir)
    trainer.callbacks.append(WritePredictions(str(folder / "predictions.jsonl")))
    trainer.predict(module, data)
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(len(answers)))
    right = [row["text"] == answer for row, answer in zip(rows, answers, strict=True)]
    assert sum(right) / len(right) == pytest.approx(scores["test/exact_match"], abs=1e-6)


def test_lora_learns_the_chapters_of_docstrings(decoder: str, tmp_path: Path) -> None:
    plan = Plan.uniform(LoRA(r=16, alpha=32, sites=LINEAR))
    chats = chapters()
    before, after = scores(decoder, tmp_path, plan, chats, epochs=3, batch_size=16)
    assert before["test/exact_match"] == 0 and before["test/perplexity"] > 50
    answers = [chat[-1]["content"] for chat in chats["test"]]
    most = max(map(answers.count, answers)) / len(answers)  # always the most frequent answer
    assert after["test/exact_match"] > most + 0.15
    assert after["test/perplexity"] < 2


@pytest.mark.skipif(not BANKING77.is_dir(), reason="needs banking77 beside the project")
@pytest.mark.parametrize("packing", [False, True])
def test_lora_learns_intents_also_from_packed_rows(
    decoder: str, tmp_path: Path, packing: bool
) -> None:
    plan = Plan.uniform(LoRA(r=16, alpha=32, sites=LINEAR))
    options = {"batch_size": 4, "packing": True} if packing else {"batch_size": 16}
    before, after = scores(decoder, tmp_path, plan, intents(), epochs=3, **options)
    assert before["test/exact_match"] == 0
    assert after["test/exact_match"] > 0.85
    assert after["test/perplexity"] < 2


@pytest.mark.skipif(not BANKING77.is_dir(), reason="needs banking77 beside the project")
def test_unipelt_learns_intents(decoder: str, tmp_path: Path) -> None:
    before, after = scores(decoder, tmp_path, UniPELT(), intents(), epochs=8, batch_size=16)
    assert before["test/exact_match"] == 0
    assert after["test/exact_match"] > 0.45  # a quarter are right by chance
    assert after["test/perplexity"] < 5
