from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from lightning_pelt import MultiLabelText

ROWS = [
    {"text": "a b", "labels": ["sports", "news"]},
    {"text": "c d", "labels": []},
    {"text": "e", "labels": ["news"]},
]
SETS = [[1, 1], [0, 0], [1, 0]]  # of news, sports


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def written(kind: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """A file or folder with the rows, and the options with which it is read."""
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    elif kind == "folder":
        features = Features(text=Value("string"), labels=List(ClassLabel(names=["news", "sports"])))
        Dataset.from_list(ROWS).cast(features).save_to_disk(str(path))
    elif kind == "csv":
        path.write_text("text,labels\na b,sports; news\nc d,\ne,news\n")
        return str(path), {"separator": ";"}
    elif kind == "tsv":
        path.write_text("text\tnews\tsports\na b\t1\tTrue\nc d\t0\t0.0\ne\t1\tfalse\n")
        return str(path), {"label_columns": ["news", "sports"]}
    else:
        jsonl(path, ROWS)
    return str(path), {}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder", "csv", "tsv"])
def test_every_source_gives_the_same_sets(words: str, tmp_path: Path, kind: str) -> None:
    path, options = written(kind, tmp_path)
    data = MultiLabelText(words, train=path, dev_share=0, bucketed=False, **options)
    assert data.labels == ["news", "sports"]
    assert data.examples("train")["labels"][:] == SETS
    (batch,) = data.train_dataloader()
    assert sorted(batch["labels"].tolist()) == sorted(SETS)
    assert batch["input_ids"].shape == (3, 3)


def test_left_padding_leaves_sets_in_order(words: str, tmp_path: Path) -> None:
    data = MultiLabelText(
        words, test=jsonl(tmp_path / "r.jsonl", ROWS), labels=["x", "news", "sports"]
    )
    data.tokenizer.padding_side = "left"
    (batch,) = data.test_dataloader()
    assert sorted(batch["labels"].tolist()) == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]
    (batch,) = data.predict_dataloader()
    assert "labels" not in batch


def test_integers_are_names_in_their_order(words: str, tmp_path: Path) -> None:
    rows = [{"text": "a", "labels": [10, 9]}, {"text": "b", "labels": [9]}]
    data = MultiLabelText(words, train=jsonl(tmp_path / "r.jsonl", rows), dev_share=0)
    assert data.labels == ["9", "10"]
    assert data.examples("train")["labels"][:] == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"labels": ["sport"]}, {}, "unknown label 'sport': did you mean 'sports'"),
        ({"labels": "sports;news"}, {}, 'expected a list of labels: .* such as separator=";"'),
        ({"labels": "sports|new"}, {"separator": "|"}, "unknown label 'new': did you mean 'news'"),
        ({"labels": None}, {}, "the labels are missing; an empty list"),
        ({"labels": "['news', 'sports']"}, {}, "as Python prints it"),
        ({"labels": 3}, {}, "3 is a int, expected a list"),
    ],
)
def test_bad_rows_are_refused(
    words: str, tmp_path: Path, row: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    good = ROWS[0] if not options else {**ROWS[0], "labels": "sports|news"}
    path = jsonl(tmp_path / "rows.jsonl", [good, {"text": "a", **row}])
    data = MultiLabelText(words, train=path, dev_share=0, labels=["news", "sports"], **options)
    with pytest.raises(ValueError, match=rf"rows\.jsonl, row 2, column 'labels': .*{said}"):
        data.setup("fit")


def test_a_flag_is_0_or_1(words: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,news,sports\na,1,2\n")
    data = MultiLabelText(words, test=str(path), label_columns=["news", "sports"])
    with pytest.raises(ValueError, match="row 1, column 'sports': '2' is neither 0 nor 1"):
        data.setup("test")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"separator": ""}, "separator is empty"),
        ({"label_columns": ["a"], "labels": ["a"]}, "leave out labels and separator"),
        ({"label": "label"}, "unknown column 'label': did you mean 'labels'"),
        ({"label_columns": ["news"]}, "unknown column 'news'"),
    ],
)
def test_bad_options_are_refused(
    words: str, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    path = jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ValueError, match=said):
        MultiLabelText(words, train=path, dev_share=0, **options).setup("fit")


def test_labels_need_a_source(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"give labels=\[\.\.\.\], or train="):
        _ = MultiLabelText(words, test=path).labels
    path = jsonl(tmp_path / "none.jsonl", [{"text": "a", "labels": []}])
    with pytest.raises(ValueError, match="no row has a label"):
        _ = MultiLabelText(words, train=path).labels
