from __future__ import annotations

import random

import pytest
import torch

from lightning_pelt.data._window_batch import CollateWindows
from lightning_pelt.data._windows import check_fast, cut, owners, spans
from lightning_pelt.utils.backbone import load_tokenizer


@pytest.mark.parametrize(("size", "stride"), [(8, 0), (8, 3), (9, 7), (40, 4)])
def test_windows_are_those_of_the_tokenizers(minilm: str, size: int, stride: int) -> None:
    tokenizer = load_tokenizer(minilm)
    draw = random.Random(size)
    for count in (0, 1, size - 2, size - 1, size, 3 * size + 1):
        text = " ".join(draw.choice(["dog", "cat", "house", "tree"]) for _ in range(count))
        expected = tokenizer(
            text,
            truncation=True,
            max_length=size,
            stride=min(stride, size - 3),
            return_overflowing_tokens=True,
        )
        whole = tokenizer(text)
        names = ("input_ids", "token_type_ids", "attention_mask")
        tokens = {name: whole[name] for name in names}
        content = (1, len(whole["input_ids"]) - 1)
        cuts = spans(count, size - 2, min(stride, size - 3))
        found = [cut(tokens, content, span) for span in cuts]
        for name in names:
            assert [window[name] for window in found] == expected[name]


def test_a_token_belongs_to_the_window_with_the_most_context() -> None:
    windows = spans(23, 10, 6)
    found = owners(windows, 23)
    for token in range(23):
        contexts = [
            min(token - start, end - 1 - token) if start <= token < end else -1
            for start, end in windows
        ]
        assert found[token] == contexts.index(max(contexts))
    assert owners([(0, 0)], 0).tolist() == []


def test_slow_tokenizers_are_refused_by_name(minilm: str) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match=r"tokenizer of 'mine', Slow, is not a fast one"):
        check_fast(Slow(), "mine", "QA")  # type: ignore[arg-type]
    check_fast(load_tokenizer(minilm), minilm, "QA")


@pytest.mark.parametrize("side", ["right", "left"])
def test_windows_of_all_rows_are_one_batch(words: str, side: str) -> None:
    tokenizer = load_tokenizer(words)
    tokenizer.padding_side = side
    rows = [
        {
            "input_ids": [[5, 6, 7], [8]],
            "word_of_token": [[0, -1, 1], [2]],
            "null_positions": [0, 0],
            "words": 3,
            "tags": [1, 2, 3],
            "id": "x",
        },
        {
            "input_ids": [[9, 9]],
            "word_of_token": [[0, 1]],
            "null_positions": [1],
            "words": 2,
            "tags": [4, 5],
            "id": "y",
        },
    ]
    batch = CollateWindows(tokenizer, at_once=7)(rows)
    pad, left = tokenizer.pad_token_id, side == "left"
    assert batch["input_ids"].tolist() == [
        [5, 6, 7],
        [pad, pad, 8] if left else [8, pad, pad],
        [pad, 9, 9] if left else [9, 9, pad],
    ]
    assert batch["word_of_token"][1].tolist() == ([-1, -1, 2] if left else [2, -1, -1])
    assert batch["null_positions"].tolist() == ([0, 2, 2] if left else [0, 0, 1])
    assert batch["row_of_window"].tolist() == [0, 0, 1]
    assert batch["tags"].tolist() == [[1, 2, 3], [4, 5, -100]]
    assert batch["words"].tolist() == [3, 2]
    assert (batch["id"], batch["windows_at_once"]) == (["x", "y"], 7)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    again = CollateWindows(tokenizer, at_once=7)(columns)
    for name, value in batch.items():
        assert torch.equal(value, again[name]) if isinstance(value, torch.Tensor) else True


def test_windows_in_training_are_rows(words: str) -> None:
    rows = [
        {"input_ids": [5, 6], "start_positions": 1},
        {"input_ids": [7], "start_positions": 0},
    ]
    tokenizer = load_tokenizer(words)
    tokenizer.padding_side = "left"
    batch = CollateWindows(tokenizer, at_once=7)(rows)
    assert batch.keys() == {"input_ids", "start_positions"}
    assert batch["start_positions"].tolist() == [1, 1]
