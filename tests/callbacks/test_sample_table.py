"""The table of samples: its rows, when it is logged, and to which logger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from chat import llama, saved, says, tokenizer
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from lightning_pelt import CausalLM, ChatText, LoRA, PELTModule, Plan
from lightning_pelt.callbacks import SampleTable

CHATS = [[says("user", f"Hi {n}"), says("assistant", f"Paris {n}")] for n in range(3)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return llama(tmp_path_factory.mktemp("llama"), tokenizer())


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What loggers of W&B are asked to log."""
    found: list[dict[str, Any]] = []

    def log_table(self: WandbLogger, key: str, **options: Any) -> None:
        found.append({"key": key, **options})

    monkeypatch.setattr(WandbLogger, "log_table", log_table)
    monkeypatch.setattr(WandbLogger, "log_metrics", lambda *args, **options: None)
    monkeypatch.setattr(WandbLogger, "log_hyperparams", lambda *args, **options: None)
    yield found
    wandb.finish()  # the next WandbLogger of the process would continue the run


def parts(base: str, tmp_path: Path, *, logger: Any, **table: Any) -> tuple[Any, ...]:
    rows = saved(tmp_path / "rows.jsonl", CHATS)
    data = ChatText(
        base, train=rows, dev=rows, test=rows, chat_template="zephyr", max_length=64, batch_size=2
    )
    module = PELTModule(base, Plan.uniform(LoRA(r=2)), CausalLM(max_new_tokens=3))
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=logger,
        callbacks=[SampleTable(**table)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        default_root_dir=tmp_path,
    )
    return trainer, module, data


@pytest.mark.slow
def test_the_first_rows_are_logged_with_prompt_target_and_answer(
    base: str, tmp_path: Path, tables: list[dict[str, Any]]
) -> None:
    trainer, module, data = parts(base, tmp_path, logger=WandbLogger(offline=True), rows=1)
    trainer.fit(module, datamodule=data)
    assert [table["key"] for table in tables] == ["val/samples"] * 2  # not in the sanity check
    trainer.test(module, datamodule=data, verbose=False)
    assert tables[2]["key"] == "test/samples"
    assert tables[0]["columns"] == ["step", "row", "prompt", "target", "generated"]
    (batch, *_) = data.test_dataloader()
    (expected, *_) = module.task.samples(module.model, batch, tokenizer=module.tokenizer)
    ((step, number, prompt, target, generated),) = tables[2]["data"]
    assert (step, number) == (trainer.global_step, 0)
    assert prompt.startswith("<|user|>\nHi ") and prompt.endswith("<|assistant|>\n")
    assert target.startswith("Paris ")
    assert generated == expected["generated"]


@pytest.mark.slow
def test_every_other_epoch_and_as_files_of_other_loggers(
    base: str, tmp_path: Path, tables: list[dict[str, Any]]
) -> None:
    trainer, module, data = parts(
        base, tmp_path, logger=WandbLogger(offline=True), every_n_epochs=2
    )
    trainer.fit(module, datamodule=data)
    assert len(tables) == 1 and len(tables[0]["data"]) == 2  # a batch has two rows
    for logger, folder in ((CSVLogger(tmp_path, "csv", 0), "csv/version_0"), (False, ".")):
        trainer, module, data = parts(base, tmp_path, logger=logger)
        trainer.fit(module, datamodule=data)
        files = sorted((tmp_path / folder / "media/val/samples").iterdir())
        assert [file.name for file in files] == ["00000001.jsonl", "00000003.jsonl"]
        rows = [json.loads(line) for line in files[1].read_text().splitlines()]
        assert [(row["step"], row["row"]) for row in rows] == [(3, 0), (3, 1)]
        assert all(row["target"].startswith("Paris ") for row in rows)


def test_numbers_below_1_are_refused() -> None:
    with pytest.raises(ValueError, match="rows must be at least 1, not 0"):
        SampleTable(rows=0)
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1"):
        SampleTable(every_n_epochs=0)
