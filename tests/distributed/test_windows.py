"""Two processes count the rows that are read in windows as one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from colours import COLOURS, TAGS, questions, saved, sets, tagged
from lightning.pytorch import Trainer
from small import bert

from lightning_pelt import (
    AnsweredQuestions,
    LoRA,
    MultiLabel,
    MultiLabelText,
    PELTModule,
    Plan,
    QuestionAnswering,
    TaggedWords,
    TokenClassification,
)
from lightning_pelt.data import TextDataModule
from lightning_pelt.tasks import Task

pytestmark = pytest.mark.slow
SHORT = {"batch_size": 4, "max_length": 16}


def tags(backbone: str, folder: Path) -> tuple[TextDataModule, Task]:
    rows = saved(folder / "rows.jsonl", tagged(18, seed=1))
    data = TaggedWords(backbone, train=rows, dev=rows, labels=TAGS, stride=6, **SHORT)
    return data, TokenClassification()


def answers(backbone: str, folder: Path) -> tuple[TextDataModule, Task]:
    rows = saved(folder / "rows.jsonl", questions(18, seed=1))
    options: dict[str, Any] = {"stride": 6, "max_question_length": 2, **SHORT}
    data = AnsweredQuestions(backbone, train=rows, dev=rows, **options)
    return data, QuestionAnswering(null_threshold=0.0)


def labels(backbone: str, folder: Path) -> tuple[TextDataModule, Task]:
    rows = saved(folder / "rows.jsonl", sets(18, seed=1))
    data = MultiLabelText(backbone, train=rows, dev=rows, labels=list(COLOURS), **SHORT)
    return data, MultiLabel(metrics=("micro_f1", "subset_accuracy"))


def scores(made: tuple[TextDataModule, Task], folder: Path, *, processes: int) -> dict[str, float]:
    """Validation after two steps; each step has eight rows, in however many processes."""
    data, task = made
    data.batch_size = data.eval_batch_size = 8 // processes
    module = PELTModule(
        data.backbone,
        Plan.uniform(LoRA(r=2)),
        task,
        labels=data.labels,
        lr=1e-2,
        base_dropout=False,
    )
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    found = trainer.validate(module, data, verbose=False)[0]
    return {name: float(value) for name, value in found.items() if name != "val/loss"}


@pytest.mark.parametrize("make", [tags, answers, labels])
def test_two_processes_agree_with_one(make: Any, tmp_path: Path) -> None:
    backbone = bert(tmp_path / "bert")
    one = scores(make(backbone, tmp_path), tmp_path, processes=1)
    two = scores(make(backbone, tmp_path), tmp_path, processes=2)
    assert any(one.values())
    assert two == pytest.approx(one, abs=1e-4)
