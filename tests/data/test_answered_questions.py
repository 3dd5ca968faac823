from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from lightning_pelt import AnsweredQuestions
from lightning_pelt.data._answers import Answers, Start, one_answer, visible
from lightning_pelt.utils.backbone import load_tokenizer

ROWS = [
    {
        "id": "p",
        "question": "Where is the tower?",
        "context": "The tower is in Paris, not in Rome.",
        "answers": {"text": ["Paris", "in Paris"], "answer_start": [16, 13]},
    },
    {
        "id": "q",
        "question": "Who built it?",
        "context": "Nobody knows.",
        "answers": {"text": [], "answer_start": []},
    },
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def train(tmp_path: Path) -> str:
    return jsonl(tmp_path / "rows.jsonl", ROWS)


def written(kind: str, folder: Path) -> str:
    path = folder / f"rows.{kind}"
    pairs = [
        {**row, "answers": [dict(zip(("text", "answer_start"), pair)) for pair in zip(*a.values())]}  # noqa: B905
        for row in ROWS
        for a in [row["answers"]]
    ]
    if kind == "parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    elif kind == "folder":
        Dataset.from_list(ROWS).save_to_disk(str(path))
    elif kind == "json":  # a list of dictionaries per row, as in the files of SQuAD
        path.write_text(json.dumps(pairs))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows({**row, "answers": json.dumps(row["answers"])} for row in ROWS)
    else:
        return jsonl(path, ROWS)
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv", "folder"])
def test_every_source_gives_the_same_answers(minilm: str, tmp_path: Path, kind: str) -> None:
    data = AnsweredQuestions(minilm, train=written(kind, tmp_path), dev_share=0)
    assert data.splits["train"]["answers"][:] == [row["answers"] for row in ROWS]
    assert data.labels is None


def test_an_answer_may_have_two_columns(minilm: str, tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text("question,context,answer,at\nq,a b c,b,2\nq,a b c,,\nq,a b c,,-1\n")
    data = AnsweredQuestions(
        minilm, test=str(path), answers="answer", answer_start="at", max_length=128, stride=32
    )
    (batch,) = data.test_dataloader()
    assert batch["answers"] == [["b"], [], []]
    assert batch["starts"][0, batch["start_positions"][0]] == 2
    assert one_answer("b", 2) == {"text": ["b"], "answer_start": [2]}


def squad_features(tokenizer: Any, row: dict[str, Any], length: int, stride: int) -> list[Any]:
    """Windows and targets as in the question answering example of transformers."""
    encoded = tokenizer(
        row["question"],
        row["context"],
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    features = []
    for number, ids in enumerate(encoded["input_ids"]):
        offsets, sequences = encoded["offset_mapping"][number], encoded.sequence_ids(number)
        cls = ids.index(tokenizer.cls_token_id)
        start = end = cls
        if row["answers"]["text"]:
            first = row["answers"]["answer_start"][0]
            last = first + len(row["answers"]["text"][0])
            left, right = sequences.index(1), len(ids) - 1
            while sequences[right] != 1:
                right -= 1
            if offsets[left][0] <= first and offsets[right][1] >= last:
                context_end = right  # the example looks behind it, at the offsets (0, 0)
                while left <= context_end and offsets[left][0] <= first:
                    left += 1
                while offsets[right][1] >= last:
                    right -= 1
                start, end = left - 1, right + 1
        features.append((ids, encoded["token_type_ids"][number], start, end))
    return features


@pytest.mark.parametrize(("length", "stride"), [(20, 4), (24, 0), (64, 32)])
def test_training_windows_are_those_of_transformers(
    minilm: str, tmp_path: Path, length: int, stride: int
) -> None:
    filler = "It was a day like any other, unbelievably long. "
    rows = [*ROWS]
    for count in (1, 3):
        context = filler * count + ROWS[0]["context"] + " " + filler * 2
        start = context.index("Paris")
        rows.append({**ROWS[0], "context": context, "answers": {"text": ["Paris"]}})
        rows[-1]["answers"]["answer_start"] = [start]
    data = AnsweredQuestions(
        minilm,
        train=jsonl(tmp_path / "rows.jsonl", rows),
        dev_share=0,
        max_length=length,
        stride=stride,
        max_question_length=10,
    )
    tokenizer = load_tokenizer(minilm)
    expected = [f for row in rows for f in squad_features(tokenizer, row, length, stride)]
    names = ("input_ids", "token_type_ids", "start_positions", "end_positions")
    found = [tuple(row[name] for name in names) for row in data.examples("train")]
    assert found == expected
    assert any(start != end or start > 0 for *_, start, end in expected)
    (batch,) = AnsweredQuestions(
        minilm,
        train=data.sources.locations["train"],
        dev_share=0,
        max_length=length,
        stride=stride,
        max_question_length=10,
        batch_size=99,
    ).train_dataloader()
    assert batch.keys() == {
        "input_ids",
        "token_type_ids",
        "attention_mask",
        "start_positions",
        "end_positions",
    }


def test_every_character_of_the_context_can_be_answered_once(minilm: str, tmp_path: Path) -> None:
    context = "  Ünbelievableness and\tthe tower\u200b of Paris" + " x" * 40
    row = {**ROWS[1], "context": context}
    data = AnsweredQuestions(
        minilm,
        test=jsonl(tmp_path / "r.jsonl", [ROWS[0], row]),
        id="id",
        max_length=24,
        stride=7,
        max_question_length=8,
        batch_size=2,
        bucketed=False,
    )
    (batch,) = data.test_dataloader()
    assert batch["context"] == [ROWS[0]["context"], context]
    assert batch["answers"] == [["Paris", "in Paris"], []]
    assert batch["id"] == ["p", "q"]
    own = batch["row_of_window"] == 1
    assert int(own.sum()) > 3
    starts = batch["starts"][own]
    words = context.split()
    places = [context.index(words[0])]
    found = sorted(starts[starts >= 0].tolist())
    assert found == sorted(set(found))
    assert places[0] in found
    assert sum(context[start] == "x" for start in found) == 40
    ends = batch["ends"][own]
    assert ((ends >= 0) >= (starts >= 0)).all()
    assert {context[end - 1] for end in ends[ends >= 0].tolist()}.isdisjoint(" \t")
    types = batch["token_type_ids"][own]
    assert (types[ends >= 0] == 1).all()
    assert batch["null_positions"].tolist() == [0] * len(batch["input_ids"])
    assert "answers" not in next(iter(data.predict_dataloader()))


def test_long_questions_are_cut(minilm: str, tmp_path: Path) -> None:
    row = {**ROWS[0], "question": "why " * 50}
    path = jsonl(tmp_path / "rows.jsonl", [row])
    options = {"dev_share": 0, "max_length": 32, "stride": 4, "max_question_length": 12}
    data = AnsweredQuestions(minilm, train=path, **options)
    tokenizer = load_tokenizer(minilm)
    (found,) = data.examples("train")
    assert found["input_ids"] == tokenizer("why " * 12, row["context"])["input_ids"]
    start, end = found["start_positions"], found["end_positions"]
    assert tokenizer.decode(found["input_ids"][start : end + 1]) == "paris"
    with pytest.raises(ValueError, match=r"max_length=32 leaves 17 tokens of a window beside 15"):
        AnsweredQuestions(minilm, train=path, **{**options, "stride": 17}).setup("fit")


def test_a_tokenizer_without_cls_uses_the_last_token(words: str, tmp_path: Path) -> None:
    """``<s> question context </s>``: an end-of-text token stands for no answer."""
    row = {
        "question": "q r",
        "context": "a b c",
        "answers": {"text": ["b"], "answer_start": [2]},
    }
    none = {**row, "answers": {"text": [], "answer_start": []}}
    path = jsonl(tmp_path / "rows.jsonl", [row, none])
    options = {"max_length": 32, "stride": 4, "max_question_length": 8}
    data = AnsweredQuestions(words, train=path, dev_share=0, **options)
    first, second = data.examples("train")
    # the tokenizer splits at white space, so the line break is no token of its own
    assert first["input_ids"] == [0, 18, 19, 2, 3, 4, 1]
    assert (first["start_positions"], first["end_positions"]) == (4, 4)
    assert (second["start_positions"], second["end_positions"]) == (6, 6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"answers": {"text": ["Paris"], "answer_start": [15]}},
            r"column 'answers': the answer 'Paris' should begin at character 15.*there is ' Pari'"
            r": the answer begins at character 16",
        ),
        ({"answers": {"text": ["Oslo"], "answer_start": [1]}}, "the answer is not in the context"),
        ({"answers": {"text": ["Paris"]}}, "the answers have no 'answer_start'"),
        ({"answers": {"text": ["a", "b"], "answer_start": [1]}}, "2 texts and 1 starts"),
        ({"answers": "Paris"}, "'Paris' is a text, expected .* name answer_start= too"),
        ({"answers": None}, "None is a NoneType, expected"),
        ({"answers": {"text": [" "], "answer_start": [1]}}, "the text is empty"),
        ({"answers": {"text": ["T"], "answer_start": [0.5]}}, "0.5 is not the number of a char"),
        ({"context": " "}, "column 'context': the text is empty"),
    ],
)
def test_bad_rows_are_refused(
    minilm: str, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [ROWS[1], {**ROWS[0], **changes}])
    with pytest.raises(ValueError, match=rf"rows\.jsonl, row 2.*{said}"):
        AnsweredQuestions(minilm, train=path, dev_share=0).setup("fit")


def test_values_of_one_answer() -> None:
    assert [Start()(value) for value in (None, "", float("nan"), "7", 3.0)] == [-1, -1, -1, 7, 3]
    assert one_answer(" ", 3) == one_answer("a", -1) == {"text": [], "answer_start": []}
    one = {"text": "Paris", "answer_start": 16}
    assert Answers()(one) == {"text": ["Paris"], "answer_start": [16]}


def test_white_space_is_not_part_of_an_answer() -> None:
    found = visible("a  b ", [(0, 1), (1, 4), (4, 5)])
    assert found.tolist() == [[0, 1], [3, 4], [5, 4]]
    assert np.flatnonzero(found[:, 0] < found[:, 1]).tolist() == [0, 1]
