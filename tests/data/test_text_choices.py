"""Questions with choices: the forms of SWAG, RACE and ARC, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from lightning_pelt.data import TextChoices


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def batch_of(data: TextChoices, split: str = "test") -> dict[str, Any]:
    loader = data.test_dataloader() if split == "test" else data.predict_dataloader()
    (batch,) = loader
    return batch


def answers_of(words: str, path: str, **options: Any) -> list[int]:
    data = TextChoices(words, test=path, prompt="q", **options)
    return data.splits["test"]["answer"][:]


def test_choices_are_paired_with_their_prompt(words: str, tmp_path: Path) -> None:
    rows = (
        {"q": "a", "choices": ["b", "c d", "e"], "answer": 2},
        {"q": "f", "choices": ["g", "h"], "answer": 0},
    )
    data = TextChoices(words, test=jsonl(tmp_path / "t.jsonl", *rows), prompt="q", bucketed=False)
    batch = batch_of(data)
    assert batch["input_ids"].tolist() == [
        [[0, 2, 3, 1], [0, 2, 4, 5], [0, 2, 6, 1]],
        [[0, 7, 8, 1], [0, 7, 9, 1], [0, 7, 8, 1]],  # the first in the place of the missing one
    ]
    assert batch["attention_mask"].sum(-1).tolist() == [[3, 4, 3], [3, 3, 3]]
    assert batch["present"].tolist() == [[True, True, True], [True, True, False]]
    assert batch["labels"].tolist() == [2, 0]
    assert data.lengths("test").tolist() == [4, 3]
    predicted = batch_of(data, "predict")
    assert "labels" not in predicted
    assert predicted["choices"] == [["b", "c d", "e"], ["g", "h"]]


def test_swag_has_a_column_for_each_choice(words: str, tmp_path: Path) -> None:
    path = tmp_path / "swag.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sent1", "sent2", "ending0", "ending1", "ending2", "label"])
        writer.writerow(["a", "b", "c", "d", "e", 1])
        writer.writerow(["a", "b", "c", "d", "", 0])
    data = TextChoices(
        words,
        test=str(path),
        prompt="sent1",
        prompt2="sent2",
        choices=["ending0", "ending1", "ending2"],
        answer="label",
    )
    assert data.splits["test"]["choices"][:] == [["c", "d", "e"], ["c", "d"]]
    assert data.splits["test"]["answer"][:] == [1, 0]
    assert batch_of(data)["input_ids"][0].tolist() == [[0, 2, 3, 4], [0, 2, 3, 5], [0, 2, 3, 6]]


ARC = {"text": ["b", "c", "d"], "label": ["A", "B", "C"]}


@pytest.mark.parametrize(
    ("choices", "answer", "options", "index"),
    [
        (["b", "c", "d"], 1, {}, 1),
        (["b", "c", "d"], "2", {}, 2),
        (["b", "c", "d"], 3, {"first_answer": 1}, 2),
        (["bb", "c", "d"], "C", {}, 2),
        (["b", "c", "d"], "c", {"answers": "text"}, 1),
        (["two words", "c", "d"], "two words", {}, 0),
        ([10, 20, 30], 20, {}, 1),
        (ARC, "C", {}, 2),
        ({**ARC, "label": ["1", "2", "3"]}, "1", {}, 0),  # not the second
        ([{"text": "b", "label": "E"}, {"text": "c", "label": "D"}], "D", {}, 1),
        ('["b", "c"]', 1, {}, 1),
        (["1", "2", "3"], "1", {"answers": "text"}, 0),
        (["1", "2", "3"], "1", {"answers": "index"}, 1),
    ],
)
def test_forms_of_answers(
    words: str, tmp_path: Path, choices: Any, answer: Any, options: dict[str, Any], index: int
) -> None:
    path = jsonl(tmp_path / "t.jsonl", {"q": "a", "choices": choices, "answer": answer})
    assert answers_of(words, path, **options) == [index]


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        (
            ["1", "2", "3"],
            "1",
            r"means as index choice 2 and as text choice 1: set answers=",
        ),
        (["x", "A"], "A", r"means as letter choice 1 and as text choice 2: set answers='letter'"),
        (
            ["b", "c"],
            2,
            r"2 is none of the 2 choices: .* index from 0 to 1.*first_answer=1",
        ),
        (["b", "c"], -1, r"-1 is none of the 2 choices.*name their file in predict="),
        (["b", "c"], "d e", r"'d e' is none of the 2 choices: .*a letter from A to B, its text"),
        (ARC, "D", r"unknown label of a choice 'D'"),
        (["b"], 0, r"expected at least 2 choices, and the row has 1"),
        (["b", " "], 0, r"choice 2: the text is empty"),
        ("b, c", 0, r"'b, c' is a text, expected a list of texts"),
        ({"label": ["A"]}, "A", r".* has no list of texts"),
        (7, 0, r"7 is not a list"),
        (["b", "c"], None, r"the label is missing"),
    ],
)
def test_what_is_refused_names_file_row_and_columns(
    words: str, tmp_path: Path, choices: Any, answer: Any, message: str
) -> None:
    good = {"q": "a", "choices": ["b", "c"], "answer": 0}
    path = jsonl(tmp_path / "t.jsonl", good, {"q": "a", "choices": choices, "answer": answer})
    place = r"t.jsonl, row 2, column 'choices(, answer)?': "
    with pytest.raises(ValueError, match=rf"{place}(the answer .* )?{message}"):
        answers_of(words, path)


def test_options_are_checked(words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two or more columns"):
        TextChoices(words, test="t.csv", choices=["one"])
    with pytest.raises(ValueError, match="did you mean 'letter'"):
        TextChoices(words, test="t.csv", answers="leter")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first_answer is 2"):
        TextChoices(words, test="t.csv", first_answer=2)
    path = jsonl(tmp_path / "t.jsonl", {"q": "a", "choice": ["b", "c"], "answer": 0})
    with pytest.raises(ValueError, match="unknown column 'choices': did you mean 'choice'"):
        answers_of(words, path)


def test_saved_data_sets_and_fixed_lengths(words: str, tmp_path: Path) -> None:
    rows = {"q": ["a"], "choices": [{"text": ["b", "c"], "label": ["A", "B"]}], "answer": ["B"]}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    data = TextChoices(
        words, test=str(tmp_path / "saved"), prompt="q", pad="max_length", max_length=7
    )
    batch = batch_of(data)
    assert batch["input_ids"].shape == (1, 2, 7)
    assert batch["labels"].tolist() == [1]


def test_the_longer_text_is_cut(words: str, tmp_path: Path) -> None:
    row = {"q": "a b c d e f", "choices": ["x y", "y"], "answer": 0}
    data = TextChoices(words, test=jsonl(tmp_path / "t.jsonl", row), prompt="q", max_length=5)
    first = batch_of(data)["input_ids"][0, 0]
    assert first.tolist() == [0, 2, 3, 25, 26]
