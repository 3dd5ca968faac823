from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_pelt.data import CausalText


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    lines = [{"q": "a b", "text": "c d e"}, {"q": "f g h", "text": "i"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def batch_of(words: str, rows: str, split: str = "test", **options: Any) -> dict[str, torch.Tensor]:
    data = CausalText(words, test=rows, bucketed=False, **options)
    loader = data.test_dataloader() if split == "test" else data.predict_dataloader()
    (batch,) = loader
    return batch


def test_labels_are_the_tokens_and_ignored_on_padding(words: str, rows: str) -> None:
    batch = batch_of(words, rows)
    assert batch["input_ids"].tolist() == [[0, 4, 5, 6, 1], [0, 10, 1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[0, 4, 5, 6, 1], [0, 10, 1, -100, -100]]


def test_the_end_can_be_left_open(words: str, rows: str) -> None:
    assert batch_of(words, rows, end=False)["labels"].tolist() == [
        [0, 4, 5, 6],
        [0, 10, -100, -100],
    ]


def test_a_prompt_gets_no_loss(words: str, rows: str) -> None:
    batch = batch_of(words, rows, prompt="q")
    assert batch["input_ids"].tolist() == [[0, 2, 3, 4, 5, 6, 1], [0, 7, 8, 9, 10, 1, 1]]
    assert batch["labels"].tolist() == [
        [-100, -100, -100, 4, 5, 6, 1],
        [-100, -100, -100, -100, 10, 1, -100],
    ]


@pytest.mark.parametrize(
    ("max_length", "ids", "labels"),
    [
        (5, [3, 4, 5, 6, 1], [-100, 4, 5, 6, 1]),
        (4, [4, 5, 6, 1], [4, 5, 6, 1]),
        (2, [4, 5], [4, 5]),  # a text that is cut has not ended
    ],
)
def test_a_long_row_keeps_the_text_and_the_end_of_its_prompt(
    words: str, rows: str, max_length: int, ids: list[int], labels: list[int]
) -> None:
    batch = batch_of(words, rows, prompt="q", max_length=max_length)
    assert batch["input_ids"][0].tolist() == ids
    assert batch["labels"][0].tolist() == labels


def test_a_prediction_starts_from_the_prompt(words: str, rows: str) -> None:
    batch = batch_of(words, rows, "predict", prompt="q")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"].tolist() == [[0, 2, 3, 1], [0, 7, 8, 9]]
    assert batch_of(words, rows, "predict")["input_ids"].tolist() == [[0, 4, 5, 6], [0, 10, 1, 1]]
    cut = batch_of(words, rows, "predict", prompt="q", max_length=2)
    assert cut["input_ids"].tolist() == [[2, 3], [8, 9]]


def test_a_fixed_width_holds_for_the_labels_too(words: str, rows: str) -> None:
    batch = batch_of(words, rows, pad="max_length", max_length=9)
    assert {value.shape for value in batch.values()} == {(2, 9)}
