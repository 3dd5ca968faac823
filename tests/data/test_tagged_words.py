from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lightning_pelt import TaggedWords
from lightning_pelt.data._token_labels import carriers, words_of_tokens
from lightning_pelt.utils.backbone import load_tokenizer

ROWS = [
    {"tokens": ["Ada", "Lovelace", "saw", "Paris"], "ner_tags": ["B-PER", "I-PER", "O", "B-LOC"]},
    {"tokens": ["it", "rains"], "ner_tags": ["O", "O"]},
    {"tokens": ["Unbelievableness", "!"], "ner_tags": ["B-LOC", "O"]},
]
LABELS = ["O", "B-LOC", "B-PER", "I-PER"]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def train(tmp_path: Path) -> str:
    return jsonl(tmp_path / "rows.jsonl", ROWS)


def written(kind: str, folder: Path) -> str:
    path = folder / f"rows.{kind}"
    table = Dataset.from_list(ROWS)
    if kind == "parquet":
        table.to_parquet(path)
    elif kind == "folder":
        feature = Features(tokens=List(Value("string")), ner_tags=List(ClassLabel(names=LABELS)))
        table.cast(feature).save_to_disk(str(path))
    elif kind == "csv":
        lines = [",".join((" ".join(r["tokens"]), " ".join(r["ner_tags"]))) for r in ROWS]
        path.write_text("\n".join(["tokens,ner_tags", *lines]))
    elif kind == "tsv":
        lines = ["\t".join((json.dumps(r["tokens"]), json.dumps(r["ner_tags"]))) for r in ROWS]
        path.write_text("\n".join(["tokens\tner_tags", *lines]))
    else:
        return jsonl(path, ROWS)
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv", "tsv", "folder"])
def test_every_source_gives_the_same_rows(minilm: str, tmp_path: Path, kind: str) -> None:
    data = TaggedWords(minilm, train=written(kind, tmp_path), dev_share=0)
    assert data.labels == LABELS
    assert data.splits["train"]["words"][:] == [row["tokens"] for row in ROWS]
    assert data.splits["train"]["tags"][:] == [[2, 3, 0, 1], [0, 0], [1, 0]]


def test_indices_are_named_by_given_labels(minilm: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "i.jsonl", [{"tokens": ["a", "b"], "ner_tags": [3, 0]}])
    data = TaggedWords(minilm, test=path, labels=LABELS)
    assert data.splits["test"]["tags"][:] == [[3, 0]]
    unnamed = TaggedWords(minilm, train=path, dev_share=0)
    assert unnamed.labels == ["0", "3"]


@pytest.mark.parametrize("label_on", ["first", "last", "all"])
def test_labels_are_those_of_pretokenized_words(minilm: str, train: str, label_on: Any) -> None:
    """transformers' own way: words given apart, and their numbers by ``word_ids``."""
    data = TaggedWords(minilm, train=train, dev_share=0, label_on=label_on, bucketed=False)
    tokenizer = load_tokenizer(minilm)
    inside = {"B-PER": "I-PER"}
    for row, encoded in zip(ROWS, data.examples("train"), strict=True):
        expected = tokenizer(row["tokens"], is_split_into_words=True)
        assert encoded["input_ids"] == expected["input_ids"]
        words = expected.word_ids()
        for index, (word, label) in enumerate(zip(words, encoded["labels"], strict=True)):
            if word is None:
                assert label == -100
                continue
            first, last = words[index - 1] != word, words[index + 1] != word
            tag = row["ner_tags"][word]
            if label_on == "all":
                assert LABELS[label] == (tag if first else inside.get(tag, tag))
            else:
                carries = first if label_on == "first" else last
                assert label == (LABELS.index(tag) if carries else -100)


def test_evaluation_predicts_each_word_once(minilm: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [
        {
            "tokens": draw.choice(["Unbelievableness", "cat", "", "runs"], size).tolist(),
            "ner_tags": draw.choice(LABELS, size).tolist(),
        }
        for size in (0, 1, 40, 7)
    ]
    path = jsonl(tmp_path / "long.jsonl", rows)
    data = TaggedWords(minilm, test=path, labels=LABELS, max_length=16, stride=5, batch_size=4)
    (batch,) = data.predict_dataloader()
    (tested,) = [*data.test_dataloader()]
    assert "labels" not in batch
    assert batch["words"].tolist() == [0, 1, 40, 7]
    assert batch["windows_at_once"] == 4
    assert batch["input_ids"].shape[1] <= 16
    assert batch["row_of_window"].tolist().count(2) == 4
    for number, row in enumerate(rows):
        own = batch["row_of_window"] == number
        read = batch["word_of_token"][own]
        seen = sorted(read[read >= 0].tolist())
        assert seen == [i for i, word in enumerate(row["tokens"]) if word]
        ids = batch["input_ids"][own]
        for window, token in (read >= 0).nonzero().tolist():
            word = row["tokens"][int(read[window, token])]
            assert int(ids[window, token]) == load_tokenizer(minilm)(word)["input_ids"][1]
    # bucketed: another order of rows, the same content
    order = [tested["words"].tolist().index(size) for size in (0, 1, 40, 7)]
    for number, row in zip(order, rows, strict=True):
        true = tested["tags"][number, : len(row["tokens"])].tolist()
        assert [LABELS[tag] for tag in true] == row["ner_tags"]
        own = tested["row_of_window"] == number
        read = tested["word_of_token"][own]
        known = read >= 0
        labels = tested["labels"][own]
        assert (labels[~known] == -100).all()
        assert labels[known].tolist() == [true[word] for word in read[known].tolist()]


def test_training_windows_are_rows(minilm: str, tmp_path: Path) -> None:
    row = {"tokens": ["cat"] * 30, "ner_tags": ["O"] * 30}
    path = jsonl(tmp_path / "rows.jsonl", [row])
    data = TaggedWords(minilm, train=path, dev_share=0, max_length=12, stride=2, labels=LABELS)
    # 10 of 30 words per window, beginning with words 0, 8, 16 and 24
    assert [len(ids) for ids in data.examples("train")["input_ids"]] == [12, 12, 12, 8]
    assert data.lengths("train").tolist() == [12, 12, 12, 8]
    assert all((np.array(each) == 0).sum() in (6, 10) for each in data.examples("train")["labels"])
    padded = TaggedWords(
        minilm,
        train=path,
        dev_share=0,
        max_length=12,
        stride=2,
        labels=LABELS,
        pad="max_length",
        batch_size=4,
    )
    (batch,) = padded.train_dataloader()
    assert {tuple(value.shape) for value in batch.values()} == {(4, 12)}


def test_words_without_a_token_need_a_tag_o(minilm: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "r.jsonl", [{"tokens": ["a", "\u200b"], "ner_tags": ["X", "Y"]}])
    data = TaggedWords(minilm, test=path, labels=["X", "Y"])
    with pytest.raises(ValueError, match=r"unknown tag 'O'.*word 2 of the row \['a', '\\u200b'\]"):
        data.examples("test")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a"], "ner_tags": ["O", "O"]}, r"row 2: 1 words in column 'tokens', and 2"),
        ({"tokens": ["a"], "ner_tags": ["B-LOK"]}, r"row 2, column 'ner_tags': tag 1: .*'B-LOC'"),
        ({"tokens": ["a"], "ner_tags": None}, r"row 2, column 'ner_tags': the tags are missing"),
        ({"tokens": [["a"]], "ner_tags": ["O"]}, r"row 2, column 'tokens': word 1: "),
        (
            {"tokens": "['a', 'b']", "ner_tags": ["O"]},
            r"row 2, column 'tokens': .* Python prints",
        ),
        ({"tokens": 3, "ner_tags": ["O"]}, r"row 2, column 'tokens': 3 is a int, expected a list"),
    ],
)
def test_bad_rows_are_refused(minilm: str, tmp_path: Path, row: dict[str, Any], said: str) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [ROWS[0], row])
    data = TaggedWords(minilm, train=path, dev_share=0, labels=LABELS)
    with pytest.raises(ValueError, match=rf"rows\.jsonl, {said}"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stride": -1}, "stride is -1"),
        ({"label_on": "middle"}, "label_on is 'middle'"),
        ({"max_length": 20, "stride": 18}, "max_length=20 leaves 18 tokens"),
        ({"words": "token"}, "did you mean 'tokens'"),
        ({"tags": "tags"}, "did you mean 'ner_tags'"),
    ],
)
def test_bad_options_are_refused(
    minilm: str, train: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        TaggedWords(minilm, train=train, dev_share=0, **options).setup("fit")


def test_labels_need_a_source(minilm: str, train: str) -> None:
    with pytest.raises(ValueError, match=r"give labels=\[\.\.\.\], or train="):
        _ = TaggedWords(minilm, test=train).labels


@pytest.fixture
def byte_level(tmp_path: Path) -> str:
    """A decoder's tokenizer: bytes, the space belongs to the word after it, padding on the left."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
    )
    inner.train_from_iterator(["it rains in Paris today and Ada saw it"] * 3, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", padding_side="left", model_max_length=128
    ).save_pretrained(tmp_path / "bytes")
    return str(tmp_path / "bytes")


def test_decoders_pad_left_and_have_no_special_tokens(byte_level: str, tmp_path: Path) -> None:
    rows = [
        {"tokens": ["Ada", "saw", "Zürich"], "ner_tags": ["B-PER", "O", "B-LOC"]},
        {"tokens": [], "ner_tags": []},
        {"tokens": ["it", "", "rains"], "ner_tags": ["O", "O", "O"]},
    ]
    data = TaggedWords(byte_level, test=jsonl(tmp_path / "d.jsonl", rows), labels=LABELS)
    (batch,) = data.predict_dataloader()
    tokenizer = load_tokenizer(byte_level)
    assert batch["attention_mask"][1].tolist()[-1] == 1  # a row without words still has a token
    assert batch["attention_mask"][2, 0] == 0
    for number, row in enumerate(rows):
        read = batch["word_of_token"][number]
        places = (read >= 0).nonzero().flatten().tolist()
        assert read[places].tolist() == [i for i, word in enumerate(row["tokens"]) if word]
        for place in places:
            text = tokenizer.decode(batch["input_ids"][number, place:])
            words = row["tokens"][int(read[place]) :]
            assert text.strip() == " ".join(words)


def test_offsets_with_spaces_belong_to_the_next_word() -> None:
    # "New York ok", with the word "New York": tokens "New", " York", " ", "ok", and an empty one
    offsets = [(0, 3), (3, 8), (8, 9), (9, 11), (11, 11)]
    word_of = words_of_tokens(["New York", "ok"], offsets)
    assert word_of.tolist() == [0, 0, -1, 1, -1]
    assert carriers(word_of, "first").tolist() == [0, -1, -1, 1, -1]
    assert carriers(word_of, "last").tolist() == [-1, 0, -1, 1, -1]
    assert words_of_tokens([], []).tolist() == []


def test_rows_to_predict_need_no_tags(minilm: str, train: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "new.jsonl", [{"tokens": ["Ada"]}])
    data = TaggedWords(minilm, train=train, predict=path, dev_share=0)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert "tags" not in batch
    assert isinstance(batch["words"], torch.Tensor)
