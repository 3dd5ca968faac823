"""Rows that are held out of training and used instead of the dev split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import Sentences, bert

from lightning_pelt.data import GLUE, ProfileDataModule, TextClassification

ROWS = 40


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return bert(tmp_path / "backbone")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Rows that are known by their labels: 0 to 39 train, from 1000 dev, from 2000 test."""
    first = {"train": (0, ROWS), "dev": (1000, 10), "test": (2000, 12)}
    for split, (start, count) in first.items():
        rows = [{"text": "one " * (1 + i % 5), "label": start + i} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {split: str(tmp_path / f"{split}.jsonl") for split in first}


def rows_of(backbone: str, files: dict[str, str], **options: Any) -> dict[str, list[int]]:
    """The labels of each split, as they are after tokenising."""
    options = {"max_length": 16, **options}
    data = TextClassification(backbone, task="regression", **files, **options)
    return {split: [int(x) for x in data.tokens(split)["labels"]] for split in files}


def test_held_out_rows_leave_training_and_replace_dev(backbone, files):
    rows = rows_of(backbone, files, holdout=0.25)
    assert len(rows["train"]) == 30
    assert len(rows["dev"]) == 10
    assert sorted(rows["train"] + rows["dev"]) == [*range(ROWS)]
    assert rows["test"] == [*range(2000, 2012)]


def test_the_loaders_yield_those_rows_and_none_of_the_official_dev_split(backbone, files):
    data = TextClassification(
        backbone, task="regression", max_length=16, batch_size=8, holdout=0.25, **files
    )
    seen = [
        {int(label) for batch in loader for label in batch["labels"]}
        for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    ]
    assert [len(labels) for labels in seen] == [30, 10, 12]
    assert seen[0] | seen[1] == {*range(ROWS)}
    assert seen[2] == {*range(2000, 2012)}


def test_the_choice_is_random_but_depends_on_no_seed(backbone, files):
    held = [rows_of(backbone, files, holdout=0.25, seed=seed)["dev"] for seed in (0, 1)]
    assert held[0] == held[1]
    assert held[0] not in ([*range(10)], [*range(30, 40)])


def test_they_are_a_share_of_the_limited_rows_and_themselves_limited(backbone, files):
    limited = rows_of(backbone, files, limit_train=20)["train"]
    rows = rows_of(backbone, files, limit_train=20, holdout=0.25)
    assert sorted(rows["train"] + rows["dev"]) == limited
    assert len(rows["dev"]) == 5
    few = rows_of(backbone, files, limit_train=20, holdout=0.25, limit_eval=3)
    assert len(few["dev"]) == 3
    assert {*few["dev"]} < {*rows["dev"]}
    assert few["train"] == rows["train"]


def test_cached_tokens_are_not_mixed_up(backbone, files):
    for holdout, counts in ((None, (40, 10)), (0.25, (30, 10)), (0.5, (20, 20)), (None, (40, 10))):
        rows = rows_of(backbone, files, holdout=holdout)
        assert (len(rows["train"]), len(rows["dev"])) == counts
        assert (min(rows["dev"]) >= 1000) == (holdout is None)


@pytest.mark.parametrize("holdout", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_0_to_1_is_refused_at_once(backbone, files, holdout):
    with pytest.raises(ValueError, match=r"holdout is .* between 0 and 1"):
        TextClassification(backbone, holdout=holdout, **files)


@pytest.mark.parametrize(("holdout", "count"), [(0.01, 0), (0.99, 40)])
def test_a_share_that_leaves_nothing_is_refused(backbone, files, holdout, count):
    with pytest.raises(ValueError, match=f"holds {count} of 40 training rows out"):
        rows_of(backbone, files, holdout=holdout)


def test_without_training_rows_there_is_nothing_to_hold_out(backbone, files):
    data = TextClassification(backbone, task="regression", test=files["test"], holdout=0.1)
    with pytest.raises(ValueError, match="no train split"):
        data.rows("test")


def test_profiles_stay_with_their_rows(backbone, tmp_path):
    rows = [{"text": "one", "label": i % 2, "profile": f"p{i % 3}"} for i in range(30)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train = str(tmp_path / "train.jsonl")
    (tmp_path / "dev.jsonl").write_text(json.dumps(rows[0]))
    data = ProfileDataModule(
        backbone, train=train, dev=str(tmp_path / "dev.jsonl"), max_length=16, holdout=0.2
    )
    counts = np.zeros((3, 2), dtype=int)
    for split, size in (("train", 24), ("dev", 6)):
        tokens = data.tokens(split)
        assert len(tokens) == size
        np.add.at(counts, (tokens["profile"][:], tokens["labels"][:]), 1)
    assert counts.tolist() == [[5, 5]] * 3


def test_a_test_split_that_is_the_official_dev_split_stays_it(backbone, tmp_path):
    for split, label, count in (("train", 0, 20), ("dev", 1, 6)):
        rows = [{"text": "one two", "label": label}] * count
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = GLUE(backbone, "sst2", folder=str(tmp_path), max_length=16, holdout=0.1)
    labels = {split: data.tokens(split)["labels"][:] for split in ("train", "dev", "test")}
    assert labels == {"train": [0] * 18, "dev": [0] * 2, "test": [1] * 6}


def test_every_data_module_takes_it_by_its_common_arguments(backbone):
    whole, held = Sentences(backbone), Sentences(backbone, holdout=0.1)
    assert [len(whole.rows(split)) for split in ("train", "dev", "test")] == [20, 8, 8]
    assert [len(held.rows(split)) for split in ("train", "dev", "test")] == [18, 2, 8]
