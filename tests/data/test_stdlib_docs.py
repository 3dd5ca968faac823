from __future__ import annotations

import heapq
import json
import os
import sys
from collections import Counter

import pytest
import torch

from lightning_pelt.data import StdlibDocs
from lightning_pelt.data.stdlib_docs import CHAPTERS, collect


@pytest.fixture(scope="module")
def rows() -> dict[str, str]:
    return dict(collect())


def test_known_docstrings_are_in_their_chapters(rows: dict[str, str]) -> None:
    paragraph = heapq.heappush.__doc__
    assert paragraph
    assert rows[paragraph.strip()] == "data types"
    first = json.loads.__doc__.strip().split("\n\n")[0]  # type: ignore[union-attr]
    assert rows[" ".join(first.split())] == "internet data"
    assert rows[os.getpid.__doc__] == "operating system"  # type: ignore[index]


def test_texts_are_first_paragraphs_of_five_words_or_more_each_once(rows: dict[str, str]) -> None:
    collected = collect()
    assert len(collected) == len(rows)
    assert len(rows) > 3500
    assert all(len(text.split()) >= 5 and "\n" not in text for text in rows)
    assert set(rows.values()) <= set(CHAPTERS)


def test_imported_objects_are_not_rows_of_the_importing_module() -> None:
    namedtuple = "Returns a new subclass of tuple with named fields."
    assert [row for row in collect() if row[0] == namedtuple] == [(namedtuple, "data types")]


def test_the_result_does_not_depend_on_the_caller(
    rows: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced() -> None:
        """A replaced function with another docstring."""

    monkeypatch.setattr(os, "getpid", replaced)
    monkeypatch.setenv("PYTHONSTARTUP", "nowhere")
    monkeypatch.setenv("PYTHONPATH", "nowhere")
    assert dict(collect()) == rows


def test_collecting_prints_and_imports_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rare = {"modulefinder", "netrc", "poplib", "rlcompleter", "symtable", "tabnanny"}
    assert rare <= {name for names in CHAPTERS.values() for name in names.split()}
    for name in rare:
        monkeypatch.delitem(sys.modules, name, raising=False)
    collect()
    assert not rare & set(sys.modules)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_splits_are_a_partition_that_follows_from_the_seed(minilm: str) -> None:
    def splits(**options: int) -> dict[str, list[str]]:
        return {name: rows["text"][:] for name, rows in StdlibDocs(**options).splits.items()}

    first = splits()
    assert len(first["test"]) == 600
    assert len(first["dev"]) == 300
    everything = [text for part in first.values() for text in part]
    assert len(everything) == len(set(everything))
    assert first == splits(seed=1)
    assert first["test"] != splits(data_seed=1)["test"]


@pytest.mark.slow
def test_chapters_of_few_rows_are_dropped(rows: dict[str, str]) -> None:
    counts = Counter(rows.values())
    labels = StdlibDocs(min_rows=200).labels
    assert set(labels) == {chapter for chapter, count in counts.items() if count >= 200}
    assert labels == [chapter for chapter in CHAPTERS if chapter in labels]


@pytest.mark.slow
def test_batches_hold_the_chapters(rows: dict[str, str]) -> None:
    data = StdlibDocs(batch_size=4, limit_train=8, limit_eval=4, max_length=32)
    data.setup("fit")
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 4]
    by_text = {
        data.tokenizer.decode(data.tokenizer(text, max_length=32, truncation=True)["input_ids"]): c
        for text, c in rows.items()
    }
    for batch in batches:
        for ids, mask, label in zip(
            batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            assert data.labels[label] == by_text[data.tokenizer.decode(ids[mask.bool()])]
        assert batch["labels"].dtype == torch.int64


@pytest.mark.slow
def test_a_split_that_leaves_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(ValueError, match=r"test_rows 100000 .* lower them, or min_rows"):
        _ = StdlibDocs(test_rows=100_000).splits
