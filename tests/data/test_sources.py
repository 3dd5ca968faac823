"""Rows of patterns of files and of saved data sets, beside single files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from lightning_pelt.data import TextClassification

FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})


def data(backbone: str, **options: Any) -> TextClassification:
    return TextClassification(backbone, **{"dev_share": 0, **options})


def rows(texts: str) -> Dataset:
    columns = {"text": list(texts), "label": [i % 2 for i in range(len(texts))]}
    return Dataset.from_dict(columns, features=FEATURES)


def csv(path: Path, *texts: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("text,label\n" + "".join(f"{text},x\n" for text in texts))


class TestPatterns:
    def test_the_files_follow_each_other_by_name(self, words: str, tmp_path: Path) -> None:
        for name, texts in {"p-2.csv": "cd", "p-1.csv": "ab", "q.csv": "z"}.items():
            csv(tmp_path / name, *texts)
        found = data(words, train=str(tmp_path / "p-*.csv"))
        assert found.rows("train")["text"][:] == ["a", "b", "c", "d"]

    def test_folders_below(self, words: str, tmp_path: Path) -> None:
        csv(tmp_path / "one" / "a.csv", "a")
        csv(tmp_path / "two" / "a.csv", "b")
        found = data(words, train=str(tmp_path / "**" / "*.csv"))
        assert found.rows("train")["text"][:] == ["a", "b"]

    def test_an_error_names_the_file_and_its_row(self, words: str, tmp_path: Path) -> None:
        csv(tmp_path / "1.csv", "a", "b")
        csv(tmp_path / "2.csv", "c", " ")
        where = f"^{re.escape(str(tmp_path / '2.csv'))}, row 2, column 'text': the text is empty"
        with pytest.raises(ValueError, match=where):
            data(words, train=str(tmp_path / "*.csv")).rows("train")

    def test_files_with_other_columns_are_refused(self, words: str, tmp_path: Path) -> None:
        csv(tmp_path / "1.csv", "a")
        (tmp_path / "2.csv").write_text("text,kind\nb,x\n")
        with pytest.raises(ValueError, match=r"2\.csv has columns .*kind.*1\.csv.*same columns"):
            data(words, train=str(tmp_path / "*.csv")).rows("train")

    def test_no_match(self, words: str, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no file matches .*\*\.csv"):
            data(words, train=str(tmp_path / "*.csv")).rows("train")


class TestSaved:
    def test_a_data_set(self, words: str, tmp_path: Path) -> None:
        rows("abc").save_to_disk(tmp_path / "saved")
        found = data(words, train=str(tmp_path / "saved"))
        assert found.labels == ["no", "yes"]
        assert found.rows("train").to_dict() == {"text": list("abc"), "label": [0, 1, 0]}

    @pytest.mark.parametrize("format", [{"columns": ["label"]}, {"type": "torch"}])
    def test_a_format_is_not_applied(self, words: str, tmp_path: Path, format: dict) -> None:
        rows("abc").with_format(**format).save_to_disk(tmp_path / "saved")
        found = data(words, train=str(tmp_path / "saved")).rows("train")
        assert found.to_dict() == {"text": list("abc"), "label": [0, 1, 0]}

    def test_the_splits_of_a_dictionary(self, words: str, tmp_path: Path) -> None:
        DatasetDict(train=rows("ab"), validation=rows("c")).save_to_disk(tmp_path / "saved")
        found = data(words, dataset=str(tmp_path / "saved"), train="train", dev="validation")
        assert found.rows("train")["text"][:] == ["a", "b"]
        assert found.rows("dev")["text"][:] == ["c"]

    def test_another_save_is_read_again(self, words: str, tmp_path: Path) -> None:
        for texts in ("ab", "cd"):
            rows(texts).save_to_disk(tmp_path / "saved")
            found = data(words, train=str(tmp_path / "saved"))
            assert found.rows("train")["text"][:] == list(texts)

    def test_what_is_named_wrongly(self, words: str, tmp_path: Path) -> None:
        DatasetDict(train=rows("ab"), validation=rows("c")).save_to_disk(tmp_path / "splits")
        rows("ab").save_to_disk(tmp_path / "one")
        splits, one = str(tmp_path / "splits"), str(tmp_path / "one")
        with pytest.raises(
            ValueError, match="splits train, validation: name the folder as dataset="
        ):
            data(words, train=splits).rows("train")
        with pytest.raises(ValueError, match=r"unknown split 'valid'.*validation"):
            data(words, dataset=splits, train="train", dev="valid").rows("dev")
        with pytest.raises(ValueError, match="one data set without splits"):
            data(words, dataset=one, train="train").rows("train")

    def test_a_damaged_folder(self, words: str, tmp_path: Path) -> None:
        rows("ab").save_to_disk(tmp_path / "saved")
        (tmp_path / "saved" / "state.json").write_text("{")
        with pytest.raises(ValueError, match="truncated or not a saved data set"):
            data(words, train=str(tmp_path / "saved")).rows("train")

    @pytest.mark.parametrize("info", ['{"a": ' * 100_000, '{"features": {"text": "string"}}'])
    def test_a_damaged_description(self, info: str, words: str, tmp_path: Path) -> None:
        rows("ab").save_to_disk(tmp_path / "saved")
        (tmp_path / "saved" / "dataset_info.json").write_text(info)
        with pytest.raises(ValueError, match="truncated or not a saved data set"):
            data(words, train=str(tmp_path / "saved")).rows("train")

    def test_texts_that_are_not_utf_8(self, words: str, tmp_path: Path) -> None:
        folder = tmp_path / "saved"
        Dataset.from_dict({"text": ["needle", "b"], "label": [0, 1]}).save_to_disk(folder)
        (file,) = folder.glob("*.arrow")
        file.write_bytes(file.read_bytes().replace(b"needle", b"nee\xffle"))
        with pytest.raises(ValueError, match="saved: its rows are damaged"):
            data(words, train=str(folder)).rows("train")


def test_a_single_row_cannot_be_train_and_dev(words: str, tmp_path: Path) -> None:
    csv(tmp_path / "1.csv", "a")
    with pytest.raises(
        ValueError, match=r"train has 1 row, and dev_share 0\.5 takes .*dev_share=0"
    ):
        data(words, train=str(tmp_path / "1.csv"), dev_share=0.5).rows("train")
