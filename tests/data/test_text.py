from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from jsonargparse import ArgumentParser

from lightning_pelt.data import TextClassification, TextDataModule, _table_io

ROWS = [
    {"text": "a b c", "second": "d", "label": "pos"},
    {"text": 'e "f', "second": "NA", "label": "neg"},
    {"text": "007", "second": "g h", "label": "pos"},
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def written(kind: str, folder: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    path, frame = folder / f"rows.{kind}", pd.DataFrame(rows)
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "tsv":
        lines = [list(rows[0]), *(row.values() for row in rows)]
        path.write_text("\n".join("\t".join(line) for line in lines))
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        return jsonl(path, rows)
    return str(path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(words: str, tmp_path: Path, kind: str) -> None:
    data = TextClassification(
        words, train=written(kind, tmp_path), text2="second", dev_share=0, batch_size=3
    )
    assert data.labels == ["neg", "pos"]
    assert data.pair
    train = data.splits["train"]
    assert train["text"][:] == ["a b c", 'e "f', "007"]
    assert train["text2"][:] == ["d", "NA", "g h"]
    assert train["label"][:] == [1, 0, 1]
    (batch,) = data.train_dataloader()
    rows = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
    # <s> a b c d, <s> e z z, <s> z g h: unknown words are z; </s> pads
    assert sorted(rows) == [([0, 2, 3, 4, 5], 1), ([0, 6, 27, 27, 1], 0), ([0, 27, 8, 9, 1], 1)]


def test_given_labels_keep_their_order(words: str, tmp_path: Path) -> None:
    path = written("jsonl", tmp_path)
    data = TextClassification(words, test=path, labels=["pos", "unused", "neg"])
    assert data.labels == ["pos", "unused", "neg"]
    assert data.splits["test"]["label"][:] == [0, 2, 0]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([10, 9, 10, 2], ["2", "9", "10"]),
        (["b", "10", "2"], ["10", "2", "b"]),
        ([True, False], ["False", "True"]),
    ],
)
def test_labels_are_collected_sorted(
    words: str, tmp_path: Path, values: list[Any], labels: list[str]
) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": value} for value in values])
    data = TextClassification(words, train=path, dev_share=0)
    assert data.labels == labels
    assert [labels[i] for i in data.splits["train"]["label"]] == list(map(str, values))


def test_regression_has_numbers_and_no_labels(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"text": "a", "label": x} for x in (1, 2.5, -3)])
    data = TextClassification(words, train=path, dev_share=0, task="regression", bucketed=False)
    assert data.labels is None
    (batch,) = data.train_dataloader()
    assert batch["labels"].dtype == torch.float32
    assert sorted(batch["labels"].tolist()) == [-3, 1, 2.5]


def test_without_dev_a_share_of_train_becomes_it(words: str, tmp_path: Path) -> None:
    rows = [{"text": f"a {i}", "label": "x"} for i in range(40)]
    path = jsonl(tmp_path / "rows.jsonl", rows)

    def parts(**options: Any) -> dict[str, list[str]]:
        data = TextClassification(words, train=path, **options)
        return {name: rows["text"][:] for name, rows in data.splits.items()}

    splits = parts(dev_share=0.25)
    assert (len(splits["train"]), len(splits["dev"])) == (30, 10)
    assert sorted(splits["train"] + splits["dev"]) == sorted(row["text"] for row in rows)
    assert splits == parts(dev_share=0.25, seed=9)
    assert splits != parts(dev_share=0.25, data_seed=9)
    assert list(parts(dev_share=0)) == ["train"]


def test_rows_to_predict_need_no_label(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "new.jsonl", [{"text": "b"}, {"text": "c d"}])
    data = TextClassification(words, predict=path)
    (batch,) = data.predict_dataloader()
    assert batch["input_ids"].tolist() == [[0, 3, 1], [0, 4, 5]]
    assert "labels" not in batch
    with pytest.raises(ValueError, match=r"give labels=\[\.\.\.\], or train="):
        _ = data.labels


def test_a_split_of_the_hub(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    features = Features({"review": Value("string"), "y": ClassLabel(names=["worse", "better"])})

    def load(name: str, config: str | None, split: str) -> Dataset:
        asked.append((name, config, split))
        return Dataset.from_dict({"review": ["a", "b"], "y": [1, 0]}, features=features)

    monkeypatch.setattr(_table_io, "load_dataset", load)
    data = TextClassification(
        words, dataset="me/reviews", config="en", train="train[:2]", test="test",
        text="review", label="y", dev_share=0,
    )  # fmt: skip
    assert data.labels == ["worse", "better"]
    assert data.splits["test"]["label"][:] == [1, 0]
    assert asked == [("me/reviews", "en", "train[:2]"), ("me/reviews", "en", "test")]


def test_an_unreachable_data_set_is_told_with_the_remedy(words: str) -> None:
    with pytest.raises(OSError, match=r"'me/reviews' cannot be reached .* name files instead"):
        _ = TextClassification(words, dataset="me/reviews", train="train").splits


GOOD = {"text": "a b", "label": "pos"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": " ", "label": "pos"}, "row 3, column 'text': the text is empty"),
        ({"text": None, "label": "pos"}, "row 3, column 'text': the text is empty"),
        ({"text": "a", "label": "poss"}, "row 3, column 'label': unknown label 'poss': did you"),
        ({"text": "a", "label": "poss"}, "did you mean 'pos'? It must be one of: neg, pos"),
        ({"text": "a", "label": None}, "row 3, column 'label': the label is missing"),
    ],
)
def test_a_bad_value_is_named_with_file_row_and_column(
    words: str, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    path = jsonl(tmp_path / "bad.jsonl", [GOOD, GOOD, row])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        _ = TextClassification(words, test=path, labels=["neg", "pos"]).splits
    assert f"{path}, row 3, " in str(error.value)


@pytest.mark.parametrize("value", ["high", None, float("nan")])
def test_a_value_that_is_not_a_number_is_named(words: str, tmp_path: Path, value: Any) -> None:
    path = jsonl(
        tmp_path / "bad.jsonl", [{"text": "a", "label": 1.0}, {"text": "a", "label": value}]
    )
    with pytest.raises(ValueError, match=r"bad\.jsonl, row 2, column 'label': .* is not a number"):
        _ = TextClassification(words, train=path, task="regression").splits


def test_a_missing_column_is_named_with_the_nearest(words: str, tmp_path: Path) -> None:
    path = written("csv", tmp_path)
    message = (
        f"{path}: unknown column 'secnd': did you mean 'second'? "
        "It must be one of: text, second, label"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _ = TextClassification(words, train=path, text2="secnd").splits
    with pytest.raises(ValueError, match=r"rows\.csv: unknown column 'lable'.*'label'"):
        _ = TextClassification(words, train=path, label="lable").labels


def test_a_truncated_line_is_named(words: str, tmp_path: Path) -> None:
    path = Path(jsonl(tmp_path / "cut.jsonl", [GOOD, GOOD, GOOD]))
    path.write_text(path.read_text()[:-10])
    with pytest.raises(ValueError, match=r"cut\.jsonl, row 3: truncated or not a jsonl file"):
        _ = TextClassification(words, train=str(path)).splits


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.csv", "broken.parquet"])
def test_a_damaged_file_is_named(words: str, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("PAR1" if name.startswith("broken") else "")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        _ = TextClassification(words, train=str(tmp_path / name)).splits


def test_a_missing_file_is_named_with_the_nearest(words: str, tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(FileNotFoundError, match=r"tran\.jsonl: did you mean train\.jsonl\?"):
        _ = TextClassification(words, train=str(tmp_path / "tran.jsonl")).splits
    with pytest.raises(ValueError, match=r"unknown kind of file '\.txt'.*\.csv"):
        _ = TextClassification(words, train=str(tmp_path / "train.txt")).splits


def test_no_rows_at_all_and_a_wrong_share_are_refused(words: str) -> None:
    with pytest.raises(ValueError, match="needs rows: give train, dev, test or predict"):
        TextClassification(words)
    with pytest.raises(ValueError, match=r"dev_share is 1\.5"):
        TextClassification(words, train="rows.csv", dev_share=1.5)


def test_a_command_line_reads_every_option_and_shows_its_help(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(TextDataModule, "data")
    path = written("jsonl", tmp_path)
    config = parser.parse_args(
        [
            "--data=TextClassification", f"--data.backbone={words}", f"--data.train={path}",
            "--data.text2=second", "--data.labels=[neg, pos]", "--data.pad=max_length",
            "--data.max_length=8", "--data.limit_train=2", "--data.dev_share=0",
        ]
    )  # fmt: skip
    data = parser.instantiate(config).data
    (batch,) = data.train_dataloader()
    assert batch["input_ids"].shape == (2, 8)
    assert dict(data.hparams)["labels"] == ["neg", "pos"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--data.help=TextClassification"])
    text = capsys.readouterr().out
    for words_of_help in (
        "name of the column of the label",
        "share of the training rows",
        "rows of similar length",
    ):
        assert words_of_help in " ".join(text.split())


def test_the_cache_sees_a_changed_file(words: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for label in ("old", "new"):
        jsonl(path, [{"text": "a", "label": label}])
        data = TextClassification(words, train=str(path), dev_share=0)
        assert data.labels == [label]
