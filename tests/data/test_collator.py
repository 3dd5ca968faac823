from __future__ import annotations

import pytest
import torch

from lightning_pelt.data.collator import Collate
from lightning_pelt.utils.backbone import load_tokenizer

ROWS = [
    {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [6, 7]},
    {"input_ids": [8], "attention_mask": [1], "labels": [9]},
]


def test_rows_and_columns_give_the_same_padded_batch(words: str) -> None:
    collate = Collate(load_tokenizer(words))
    expected = {
        "input_ids": [[5, 6, 7], [8, 1, 1]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[6, 7], [9, -100]],
    }
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    for batch in (collate(ROWS), collate(columns)):
        assert {name: value.tolist() for name, value in batch.items()} == expected
        assert {value.dtype for value in batch.values()} == {torch.int64}


def test_the_tokenizers_side_is_padded(words: str) -> None:
    tokenizer = load_tokenizer(words)
    tokenizer.padding_side = "left"
    batch = Collate(tokenizer, {"input_ids": 4})(ROWS)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 7], [1, 1, 1, 8]]
    assert batch["labels"].tolist() == [[6, 7], [-100, 9]]


@pytest.mark.parametrize(("labels", "dtype"), [([2, 0], torch.int64), ([0.5, 4.0], torch.float32)])
def test_one_label_a_row(words: str, labels: list[float], dtype: torch.dtype) -> None:
    batch = Collate(load_tokenizer(words))({"input_ids": [[4], [4]], "labels": labels})
    assert batch["labels"].dtype == dtype
    assert batch["labels"].tolist() == labels
