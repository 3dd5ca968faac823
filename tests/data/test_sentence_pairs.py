"""Pairs of texts: the texts of a row, hard negatives, prompts and hashes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_pelt.data import SentencePairs


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def batch_of(data: SentencePairs, split: str = "test") -> dict[str, Any]:
    (batch,) = data.test_dataloader() if split == "test" else data.predict_dataloader()
    return batch


def test_texts_of_a_row(words: str, tmp_path: Path) -> None:
    rows = (
        {"anchor": "a b", "positive": "c", "hard": "d", "more": ""},
        {"anchor": "e", "positive": "c", "hard": "", "more": None},
    )
    path = jsonl(tmp_path / "t.jsonl", *rows)
    data = SentencePairs(words, test=path, negatives=["hard", "more"], bucketed=False)
    batch = batch_of(data)
    assert batch["input_ids"].tolist() == [
        [[0, 2, 3], [0, 4, 1], [0, 5, 1]],
        [[0, 6, 1], [0, 4, 1], [0, 6, 1]],  # the anchor in the place of the missing negative
    ]
    assert batch["attention_mask"].sum(-1).tolist() == [[3, 2, 2], [2, 2, 2]]
    assert batch["present"].tolist() == [[True, True, True], [True, True, False]]
    hashes = batch["text_hashes"]
    assert hashes[0, 1] == hashes[1, 1]
    assert len(hashes.unique()) == 4
    assert data.lengths("test").tolist() == [3, 2]
    pairs = batch_of(SentencePairs(words, test=path))
    assert pairs["input_ids"].shape == (2, 2, 3)


def test_a_single_column_of_negatives_is_read_once(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", {"anchor": "a", "positive": "b", "negative": "c"})
    data = SentencePairs(words, test=path, negatives=["negative"])
    assert data.splits["test"]["negatives"][:] == [["c"]]


def test_lists_of_negatives(words: str, tmp_path: Path) -> None:
    rows = (
        {"anchor": "a", "positive": "b", "others": ["c", "d"]},
        {"anchor": "a", "positive": "b", "others": '["e"]'},
        {"anchor": "a", "positive": "b", "others": None},
    )
    data = SentencePairs(words, test=jsonl(tmp_path / "t.jsonl", *rows), negatives="others")
    assert data.splits["test"]["negatives"][:] == [["c", "d"], ["e"], []]
    bad = jsonl(tmp_path / "bad.jsonl", {"anchor": "a", "positive": "b", "others": "c"})
    with pytest.raises(ValueError, match=r"bad.jsonl, row 1, column 'others': 'c' is not a list"):
        SentencePairs(words, test=bad, negatives="others").splits  # noqa: B018


def test_prompts(words: str, tmp_path: Path) -> None:
    row = {"anchor": "a", "positive": "b", "n": "c"}
    data = SentencePairs(
        words,
        test=jsonl(tmp_path / "t.jsonl", row),
        negatives=["n"],
        anchor_prompt="q ",
        positive_prompt="p ",
    )
    assert batch_of(data)["input_ids"].tolist() == [[[0, 18, 2], [0, 17, 3], [0, 17, 4]]]


def test_rows_to_predict_need_an_anchor_only(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", {"anchor": "a"}, {"anchor": "b c"})
    batch = batch_of(SentencePairs(words, predict=path), "predict")
    assert batch["input_ids"].shape == (2, 1, 3)
    assert "text_hashes" not in batch
    test = jsonl(tmp_path / "p.jsonl", {"anchor": "a", "positive": "b"})
    assert batch_of(SentencePairs(words, test=test), "predict")["input_ids"].shape == (1, 2, 2)


def test_empty_texts_are_refused(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "t.jsonl", {"anchor": "a", "positive": " "})
    with pytest.raises(ValueError, match=r"t.jsonl, row 1, column 'positive': the text is empty"):
        SentencePairs(words, test=path).splits  # noqa: B018
