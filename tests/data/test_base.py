from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.recorder import Recorder
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_pelt.data import TextClassification

ROWS = 42


@pytest.fixture
def numbered(tmp_path: Path) -> str:
    """Forty-two texts of one to twenty words; the label is the number of the row."""
    sizes = np.random.default_rng(3).integers(1, 20, ROWS)
    rows = [{"text": " ".join(["a"] * n), "label": i} for i, n in enumerate(sizes)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def module(backbone: str, numbered: str, **options: Any) -> TextClassification:
    files = {"train": numbered, "dev": numbered, "test": numbered}
    return TextClassification(backbone, task="regression", **{**files, **options})


def trainer(**options: Any) -> Trainer:
    return Trainer(
        **{"max_epochs": 2, "accelerator": "cpu", "devices": 1, **options},
        logger=False,
        enable_checkpointing="callbacks" in options,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def written(folder: Path, stage: str) -> list[list[list[float]]]:
    """The rows of each process, batch by batch."""
    files = sorted(folder.glob("*.json"))
    return [json.loads(file.read_text())[stage] for file in files]


def together(ranks: list[list[list[float]]]) -> list[list[float]]:
    return [sorted(row for batch in step for row in batch) for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize(
    "strategy", ["ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.nightly)]
)
@pytest.mark.slow
def test_two_processes_see_what_one_sees_with_the_same_global_batch(
    words: str, numbered: str, tmp_path: Path, strategy: str
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    trainer().fit(Recorder(one), datamodule=module(words, numbered, batch_size=8))
    trainer(devices=2, strategy=strategy).fit(
        Recorder(two), datamodule=module(words, numbered, batch_size=4)
    )
    assert len(list(two.iterdir())) == 2
    assert together(written(two, "train")) == together(written(one, "train"))
    dev = together(written(two, "dev"))
    assert sorted(row for batch in dev for row in batch) == sorted([*range(ROWS)] * 2)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_continues_on_one_and_the_other_way_round(
    words: str, numbered: str, tmp_path: Path
) -> None:
    def run(folder: str, size: int, ckpt: str | None = None, **options: Any) -> list[list[float]]:
        steps = ModelCheckpoint(
            tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1
        )
        trainer(callbacks=[steps], **options).fit(
            Recorder(tmp_path / f"{folder}-seen"),
            datamodule=module(words, numbered, batch_size=size),
            ckpt_path=ckpt,
        )
        return together(written(tmp_path / f"{folder}-seen", "train"))

    two = {"devices": 2, "strategy": "ddp_fork"}
    whole = run("one", 8)
    assert run("two", 4, **two) == whole
    assert run("one-from-two", 8, str(tmp_path / "two" / "step=8.ckpt")) == whole[8:]
    assert run("two-from-one", 4, str(tmp_path / "one" / "step=3.ckpt"), **two) == whole[3:]


def test_a_failed_step_is_repeated(words: str, numbered: str, tmp_path: Path) -> None:
    class Failing(Recorder):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 7 and self.folder.name == "failing":
                raise RuntimeError("power cut")
            return super().training_step(batch, batch_idx)

    data = {"batch_size": 8}
    trainer().fit(Failing(tmp_path / "whole"), datamodule=module(words, numbered, **data))
    saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", save_on_exception=True)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(callbacks=[saver]).fit(
            Failing(tmp_path / "failing"), datamodule=module(words, numbered, **data)
        )
    (saved,) = (tmp_path / "saved").glob("*step=7*.ckpt")
    trainer().fit(
        Failing(tmp_path / "rest"), datamodule=module(words, numbered, **data), ckpt_path=saved
    )
    whole, rest = (written(tmp_path / name, "train")[0] for name in ("whole", "rest"))
    assert rest == whole[7:]


def test_overfitting_sees_the_same_rows_in_every_epoch(
    words: str, numbered: str, tmp_path: Path
) -> None:
    data = module(words, numbered, batch_size=8)
    trainer(overfit_batches=2).fit(Recorder(tmp_path / "seen"), datamodule=data)
    first_rows = [[*range(8)], [*range(8, 16)]]
    assert written(tmp_path / "seen", "train")[0] == first_rows * 2


def test_every_row_is_tested_once_for_any_batch_size(
    words: str, numbered: str, tmp_path: Path
) -> None:
    data = module(words, numbered, batch_size=8, eval_batch_size=5)
    trainer().test(Recorder(tmp_path / "seen"), datamodule=data)
    batches = written(tmp_path / "seen", "test")[0]
    assert sorted(row for batch in batches for row in batch) == [*range(ROWS)]
    assert max(map(len, batches)) == 5


def test_padding_is_to_the_longest_row_of_the_batch_or_fixed(words: str, numbered: str) -> None:
    for options in ({"bucketed": True}, {"bucketed": False}):
        data = module(words, numbered, batch_size=6, **options)
        for batch in data.train_dataloader():
            assert batch["input_ids"].shape[1] == batch["attention_mask"].sum(1).max()
    fixed = module(words, numbered, batch_size=6, pad="max_length", max_length=16)
    assert {batch["input_ids"].shape for batch in fixed.train_dataloader()} == {(6, 16)}


def test_buckets_save_padding(words: str, numbered: str) -> None:
    def tokens(**options: Any) -> int:
        data = module(words, numbered, batch_size=6, **options)
        return sum(batch["input_ids"].numel() for batch in data.train_dataloader())

    assert tokens() < 0.8 * tokens(bucketed=False)


def test_a_limit_is_a_random_choice_that_stays(words: str, numbered: str) -> None:
    def chosen(**options: Any) -> list[float]:
        return module(words, numbered, limit_train=9, limit_eval=4, **options).splits["train"][
            "label"
        ][:]

    rows = chosen()
    assert rows == chosen(seed=5) == sorted(rows)
    assert len(set(rows)) == 9
    assert rows != [*range(9)]
    splits = module(words, numbered, limit_eval=4).splits
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 42, "dev": 4, "test": 4}


def test_prediction_keeps_the_order_and_has_no_labels(words: str, numbered: str) -> None:
    data = module(words, numbered, batch_size=8)
    batches = list(data.predict_dataloader())
    assert all("labels" not in batch for batch in batches)
    sizes = [int(n) for batch in batches for n in batch["attention_mask"].sum(1)]
    assert sizes == [len(text.split()) + 1 for text in data.rows("predict")["text"]]


def test_tokens_are_cached_by_the_library(
    words: str, numbered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = module(words, numbered, batch_size=4)
    expected = first.tokens("train")[:]
    calls = []
    encode = TextClassification.encode

    def counted(self: TextClassification, *args: Any) -> Any:
        calls.append(args)
        return encode(self, *args)

    monkeypatch.setattr(TextClassification, "encode", counted)
    again = module(words, numbered, batch_size=8, seed=3)  # neither changes a row's tokens
    assert again.tokens("train")[:] == expected
    assert not calls
    assert module(words, numbered, max_length=4).tokens("train")["length"][:] != expected["length"]
    assert calls


def test_training_without_a_dev_split(words: str, numbered: str, tmp_path: Path) -> None:
    data = TextClassification(words, train=numbered, task="regression", dev_share=0)
    trainer(max_epochs=1).fit(Recorder(tmp_path / "seen"), datamodule=data)
    assert json.loads((tmp_path / "seen" / "0.json").read_text()).keys() == {"train"}


def test_a_checkpoint_holds_plain_arguments(words: str, numbered: str, tmp_path: Path) -> None:
    data = module(words, numbered, train=Path(numbered))
    run = trainer(max_epochs=1, callbacks=[ModelCheckpoint(tmp_path, filename="end")])
    run.fit(Recorder(tmp_path / "seen"), datamodule=data)
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert saved["train"] == numbered
    assert saved["backbone"] == words
    again = TextClassification.load_from_checkpoint(tmp_path / "end.ckpt")
    assert again.splits["train"][:] == data.splits["train"][:]


def test_a_length_the_backbone_cannot_take_is_refused(words: str, numbered: str) -> None:
    with pytest.raises(ValueError, match=r"max_length is 129.*takes at most 128"):
        module(words, numbered, max_length=129).setup("fit")


def test_a_split_that_is_not_there_is_named(words: str, numbered: str) -> None:
    data = TextClassification(words, train=numbered, task="regression")
    with pytest.raises(ValueError, match="TextClassification has no test split, only train, dev"):
        data.setup("test")
