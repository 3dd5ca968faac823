from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from lightning_pelt.data.bucket_sampler import ResumableLoader
from lightning_pelt.data.simulated_readers import SimulatedReaders
from lightning_pelt.data.stdlib_docs import collect

# The documentation is collected and split many times.
pytestmark = pytest.mark.slow

KEYS = ("input_ids", "attention_mask", "labels", "profile")


@pytest.fixture(scope="module")
def topic() -> dict[str, str]:
    """The topic of each text there is."""
    return dict(collect())


def rows(split: Dataset) -> list[tuple[str, int, int]]:
    return list(zip(split["text"], split["label"], split["profile"], strict=True))


def all_rows(**options: Any) -> dict[str, list[tuple[str, int, int]]]:
    return {name: rows(split) for name, split in SimulatedReaders(**options).splits.items()}


@pytest.mark.parametrize("readers", [2, 12, 40])
def test_tastes_differ_and_are_balanced(readers: int) -> None:
    data = SimulatedReaders(readers=readers)
    tastes = data.tastes
    assert tastes.shape == (readers, len(data.topics))
    assert len({tuple(taste) for taste in tastes}) == readers
    assert (tastes.sum(1) == len(data.topics) / 2).all()
    assert (tastes.sum(0) == readers / 2).all()
    assert len(data.profiles) == readers
    assert data.profiles == sorted(data.profiles)


def test_labels_follow_the_taste_exactly(topic: dict[str, str]) -> None:
    data = SimulatedReaders()
    assert data.labels == ["dislike", "like"]
    for split in data.splits.values():
        for text, label, reader in rows(split):
            assert label == int(data.tastes[reader, data.topics.index(topic[text])])


def test_each_reader_has_the_rows_asked_for_half_of_them_likes(topic: dict[str, str]) -> None:
    data = SimulatedReaders(rows_per_reader=150, test_rows=600, dev_rows=300)
    train = rows(data.splits["train"])
    assert Counter(reader for _, _, reader in train) == dict.fromkeys(range(12), 150)
    assert Counter(reader for _, label, reader in train if label) == dict.fromkeys(range(12), 75)
    assert len({(text, reader) for text, _, reader in train}) == len(train)  # no text twice
    for name, size in (("test", 600), ("dev", 300)):
        held_out = rows(data.splits[name])
        assert len(held_out) == size
        readers = Counter(reader for _, _, reader in held_out)
        topics = Counter(topic[text] for text, _, _ in held_out)
        both = Counter((topic[text], reader) for text, _, reader in held_out)
        assert (len(readers), len(both)) == (12, 12 * len(data.topics))
        for counts, most in ((readers, 2), (topics, 2), (both, 1)):
            assert max(counts.values()) - min(counts.values()) <= most


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_no_model_that_is_blind_to_the_reader_beats_one_half(noise: float) -> None:
    for split in all_rows(noise=noise).values():
        said: dict[str, Counter[int]] = defaultdict(Counter)
        for text, label, _ in split:
            said[text][label] += 1
        best = sum(max(labels.values()) for labels in said.values())  # knows each text by heart
        assert best == len(split) / 2


def test_no_text_is_in_two_splits() -> None:
    texts = [{text for text, _, _ in split} for split in all_rows().values()]
    assert [len(part) > 100 for part in texts] == [True] * 3
    assert sum(map(len, texts)) == len(set.union(*texts))


def test_pairs_are_trained_on_texts_of_their_own_choice_that_overlap() -> None:
    texts: dict[int, set[str]] = defaultdict(set)
    for text, _, reader in all_rows()["train"]:
        texts[reader].add(text)
    assert all(texts[i] == texts[i + 1] for i in range(0, 12, 2))
    shared = [len(texts[i] & texts[j]) for i in range(0, 12, 2) for j in range(0, i, 2)]
    assert 0 < min(shared) <= max(shared) < 75


@pytest.mark.slow
def test_rows_follow_from_the_data_seed() -> None:
    first = all_rows(noise=0.1)
    assert first == all_rows(noise=0.1, seed=7, batch_size=3)
    other = all_rows(noise=0.1, data_seed=7)
    assert all(first[name] != other[name] for name in first)
    tastes = [SimulatedReaders(data_seed=seed).tastes for seed in (42, 7)]
    assert (tastes[0] != tastes[1]).any()


def test_noise_flips_its_share_of_every_split_and_nothing_else() -> None:
    clean, noisy = all_rows(), all_rows(noise=0.1)
    for name, split in clean.items():
        same = [(text, reader) for text, _, reader in split]
        assert same == [(text, reader) for text, _, reader in noisy[name]]
        flips = sum(a != b for (_, a, _), (_, b, _) in zip(split, noisy[name], strict=True))
        assert flips == len(split) / 10


def test_batches_hold_the_readers_and_their_judgements(words: str) -> None:
    data = SimulatedReaders(words, batch_size=32, max_length=16)
    tokens = {
        text: tuple(data.tokenizer(text, truncation=True, max_length=16)["input_ids"])
        for split in data.splits.values()
        for text in split["text"]
    }
    for name, loader in (("train", data.train_dataloader()), ("test", data.test_dataloader())):
        found: Counter[Any] = Counter()
        for batch in loader:
            assert batch["profile"].dtype == torch.int64
            assert batch["profile"].shape == batch["labels"].shape
            assert len(batch["profile"].unique()) > 1
            for ids, mask, label, reader in zip(*(batch[k] for k in KEYS), strict=True):
                found[tuple(ids[mask.bool()].tolist()), int(label), int(reader)] += 1
        expected = ((tokens[text], *said) for text, *said in rows(data.splits[name]))
        assert found == Counter(expected)


def test_only_some_readers_keep_their_own_rows_and_index() -> None:
    data = SimulatedReaders(only=["reader 03", "reader 12"])
    assert len(data.profiles) == 12
    for name, split in all_rows().items():
        assert rows(data.splits[name]) == [row for row in split if row[2] in (2, 11)]
    with pytest.raises(ValueError, match="unknown profile 'reader 3': did you mean 'reader 03'"):
        _ = SimulatedReaders(only="reader 3").splits


def test_an_epoch_resumes_where_it_stopped(words: str) -> None:
    def loader() -> ResumableLoader:
        data = SimulatedReaders(words, rows_per_reader=20, batch_size=16, max_length=16)
        made = data.train_dataloader()
        assert isinstance(made, ResumableLoader)
        return made

    def said(batches: Any) -> list[tuple[list[int], list[int]]]:
        return [(batch["profile"].tolist(), batch["labels"].tolist()) for batch in batches]

    whole = said(loader())
    broken, resumed = loader(), loader()
    running = iter(broken)
    for _ in range(5):
        next(running)
    resumed.load_state_dict(broken.state_dict())
    assert said(resumed) == whole[5:]


def test_an_odd_number_of_topics_loses_the_last(topic: dict[str, str]) -> None:
    sizes = sorted(Counter(topic.values()).values(), reverse=True)
    least = next(n for i, n in enumerate(sizes) if i % 2 == 0 and i > 2 and n > sizes[i + 1])
    data = SimulatedReaders(min_rows=least, readers=2)
    kept = [name for name, n in Counter(topic.values()).items() if n >= least]
    assert len(kept) % 2 == 1
    assert len(data.topics) == len(kept) - 1 == data.tastes.shape[1]
    assert {topic[text] for text in data.splits["train"]["text"]} == set(data.topics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readers": 11}, "readers is 11, expected an even number"),
        ({"readers": 0}, "readers is 0, expected an even number"),
        ({"test_rows": 301}, "test_rows is 301, expected an even number"),
        ({"dev_rows": 0}, "dev_rows is 0, expected an even number"),
        ({"rows_per_reader": 0}, "rows_per_reader is 0, expected at least 1"),
        ({"noise": 0.6}, "noise is 0.6, expected 0"),
        ({"noise": np.nan}, "noise is nan, expected 0"),
        ({"rows_per_reader": 5000}, "lower rows_per_reader, test_rows or dev_rows"),
        ({"test_rows": 5000}, "lower rows_per_reader, test_rows or dev_rows"),
        ({"min_rows": 5000}, "min_rows 5000 leaves 0 topics: lower it"),
        ({"readers": 10**6}, "different halves: lower readers, or min_rows"),
        ({"only": []}, "only is empty"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        _ = SimulatedReaders(**options).splits
