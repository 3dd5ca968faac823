"""Masked texts: rows, masks that follow from seed, epoch and row, and transformers' proportions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masked import circles, mask_bert
from transformers import DataCollatorForLanguageModeling

from lightning_pelt.data import MaskedText
from lightning_pelt.data._masking import Masking
from lightning_pelt.utils.backbone import load_tokenizer

CLS, SEP, MASK = 1, 2, 3


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return mask_bert(tmp_path / "bert")


def texts(path: Path, *rows: str) -> str:
    path.write_text("\n".join(json.dumps({"text": row}) for row in rows))
    return str(path)


def rows_of(data: MaskedText, split: str = "train") -> list[list[int]]:
    return data.tokens(split)["input_ids"][:]


def epoch(data: MaskedText, number: int) -> dict[tuple[int, ...], list[int]]:
    """The masked tokens of each row by its own tokens."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
    found = {}
    for batch in loader:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            own = torch.where(labels == -100, ids, labels)
            found[tuple(own.tolist())] = ids.tolist()
    return found


def test_texts_are_joined_and_cut_to_the_length(backbone: str, tmp_path: Path) -> None:
    path = texts(tmp_path / "t.jsonl", "one two three", "", "four five six red", "green")
    joined = MaskedText(backbone, train=path, dev_share=0, max_length=6)
    assert rows_of(joined) == [
        [CLS, 5, 6, 7, SEP, SEP],
        [CLS, 8, 9, 10, 11, SEP],
        [CLS, SEP, 12, SEP],
    ]
    assert joined.tokens("train")["words"][0] == [0, 1, 2, 3, 0, 0]
    alone = MaskedText(backbone, train=path, dev_share=0, max_length=5, join=False)
    assert rows_of(alone) == [
        [CLS, 5, 6, 7, SEP],
        [CLS, 8, 9, 10, SEP],
        [CLS, 11, SEP],
        [CLS, 12, SEP],
    ]


@pytest.mark.slow
def test_masks_follow_from_seed_epoch_and_row(backbone: str, tmp_path: Path) -> None:
    path = circles(tmp_path / "t.jsonl", count=40)

    def build(**options: Any) -> MaskedText:
        return MaskedText(backbone, train=path, dev_share=0, max_length=24, **options)

    first = epoch(build(), 0)
    assert first == epoch(build(batch_size=3, num_workers=2), 0)
    assert first != epoch(build(), 1)
    assert epoch(build(), 1) == epoch(build(num_workers=1), 1)
    assert first != epoch(build(seed=1), 0)


def test_two_processes_mask_as_one(backbone: str, tmp_path: Path, monkeypatch: Any) -> None:
    path = circles(tmp_path / "t.jsonl", count=40)
    options: dict[str, Any] = {"train": path, "dev_share": 0, "max_length": 24}
    one = epoch(MaskedText(backbone, batch_size=8, **options), 3)
    both: dict[tuple[int, ...], list[int]] = {}
    for rank in (0, 1):
        share = {"num_replicas": 2, "rank": rank}
        monkeypatch.setattr(MaskedText, "_sampler_options", lambda self, share=share: share)
        both |= epoch(MaskedText(backbone, batch_size=4, **options), 3)
    assert both == one


def test_evaluation_has_the_same_masks_in_every_epoch_and_run(
    backbone: str, tmp_path: Path
) -> None:
    path = circles(tmp_path / "t.jsonl")
    batches = []
    for seed, number in ((0, 0), (0, 1), (5, 2)):
        data = MaskedText(backbone, test=path, max_length=24, seed=seed)
        loader: Any = data.test_dataloader()
        loader.sampler.set_epoch(number)
        batches.append(torch.cat([batch["input_ids"].flatten() for batch in loader]))
    assert batches[0].tolist() == batches[1].tolist() == batches[2].tolist()
    assert (batches[0] == MASK).any()


def test_one_row_is_masked_as_the_collator_of_transformers_does(backbone: str) -> None:
    tokenizer = load_tokenizer(backbone)
    ids = [CLS, *[5, 6, 7, 8, 9, 10] * 4, SEP]
    masking = Masking(tokenizer, probability=0.3, whole_words=False)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    state = np.random.SeedSequence([7, 1, 2]).generate_state(1, np.uint64)
    collator.generator = torch.Generator().manual_seed(int(state[0]))
    expected = collator([{"input_ids": ids}])
    masked, labels = masking(ids, range(len(ids)), (7, 1, 2))
    assert masked == expected["input_ids"][0].tolist()
    assert labels == expected["labels"][0].tolist()


def test_proportions(backbone: str) -> None:
    tokenizer = load_tokenizer(backbone)
    masking = Masking(tokenizer, probability=0.15, whole_words=False)
    ids = [CLS, *[5, 6, 7, 8, 9, 10, 11, 12] * 100, SEP]
    own = torch.tensor([ids] * 40)
    found = [masking(ids, range(len(ids)), (0, 0, row)) for row in range(40)]
    inputs, labels = (torch.tensor(values) for values in zip(*found, strict=True))
    chosen = labels != -100
    assert not chosen[:, [0, -1]].any()
    assert torch.equal(labels[chosen], own[chosen])
    assert torch.equal(inputs[~chosen], own[~chosen])
    share = chosen[:, 1:-1].float().mean().item()
    assert share == pytest.approx(0.15, abs=0.01)
    masked = (inputs == MASK)[chosen].float().mean().item()
    kept = (inputs == own)[chosen].float().mean().item()
    assert masked == pytest.approx(0.8 + 0.1 / len(tokenizer), abs=0.02)
    assert kept == pytest.approx(0.1 + 0.1 / len(tokenizer), abs=0.02)


def test_a_short_row_has_a_hidden_token(backbone: str) -> None:
    masking = Masking(load_tokenizer(backbone), probability=0.05, whole_words=False)
    for row in range(20):
        _, labels = masking([CLS, 5, 6, SEP], [0, 1, 2, 0], (0, 0, row))
        assert any(label != -100 for label in labels)
    ids, labels = masking([CLS, SEP], [0, 0], (0, 0, 0))
    assert (ids, labels) == ([CLS, SEP], [-100, -100])


@pytest.mark.slow
def test_whole_words_are_masked_together(minilm: str, tmp_path: Path) -> None:
    path = texts(
        tmp_path / "t.jsonl", *["unbelievably undecipherable words, antidisestablished"] * 8
    )
    data = MaskedText(
        minilm, train=path, dev_share=0, whole_words=True, probability=0.4, max_length=64
    )
    words = data.tokens("train")["words"][:]
    assert max(words[0]) < len([n for n in words[0] if n])  # some words have several tokens
    rows = data.examples("train")
    some = 0
    for number in range(len(rows)):
        batch = rows[(0, [number])]
        labels, ids = batch["labels"][0], batch["input_ids"][0]
        chosen: dict[int, set[bool]] = {}
        for word, label, token in zip(words[number], labels, ids, strict=True):
            chosen.setdefault(word, set()).add(label != -100)
            assert label == -100 or token == data.tokenizer.mask_token_id
        assert all(len(found) == 1 for found in chosen.values())
        some += sum(True in found for found in chosen.values())
        assert chosen[0] == {False}
    assert some


def test_texts_to_fill_are_as_they_are(backbone: str, tmp_path: Path) -> None:
    path = texts(tmp_path / "t.jsonl", "one [MASK] three", "[MASK] five")
    data = MaskedText(backbone, predict=path, max_length=24)
    (batch,) = data.predict_dataloader()
    assert batch["input_ids"].tolist() == [[CLS, 5, MASK, 7, SEP], [CLS, MASK, 9, SEP, 0]]
    assert "labels" not in batch


def test_what_is_refused(backbone: str, words: str, tmp_path: Path) -> None:
    path = texts(tmp_path / "t.jsonl", "one two", "one [MASK]")
    with pytest.raises(ValueError, match=r"'one two' has no \[MASK\] to fill within its first 24"):
        next(iter(MaskedText(backbone, test=path, max_length=24).predict_dataloader()))
    with pytest.raises(ValueError, match=r"has no \[MASK\] to fill within its first 3 tokens"):
        long = texts(tmp_path / "l.jsonl", "one two [MASK]")
        next(iter(MaskedText(backbone, predict=long, max_length=3).predict_dataloader()))
    with pytest.raises(ValueError, match=r"has 2 \[MASK\] to fill, of which 1 are within"):
        long = texts(tmp_path / "l2.jsonl", "one [MASK] two [MASK]")
        next(iter(MaskedText(backbone, predict=long, max_length=4).predict_dataloader()))
    with pytest.raises(ValueError, match="train: 2 texts in a row are empty"):
        blank = texts(tmp_path / "b.jsonl", " ", "")
        MaskedText(backbone, train=blank, dev_share=0, max_length=9).tokens("train")
    with pytest.raises(ValueError, match="has no mask token"):
        MaskedText(words, train=path).tokens("train")
    with pytest.raises(ValueError, match="max_length=2 leaves no room beside 2 special tokens"):
        MaskedText(backbone, train=path, dev_share=0, max_length=2).tokens("train")
    with pytest.raises(ValueError, match="probability is 15"):
        MaskedText(backbone, train=path, probability=15)
