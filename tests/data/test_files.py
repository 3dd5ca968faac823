"""Files as people write them: every fault is named with file and row, and no row moves silently."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_pelt.data import CausalText, TextClassification, TextToText
from lightning_pelt.data.profile_data import ProfileDataModule

TWO = "text,label\na b,x\nc,y\n"


def saved(folder: Path, content: str | bytes, name: str = "rows.csv") -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def rows_of(backbone: str, path: Any, **options: Any) -> dict[str, list[Any]]:
    return TextClassification(backbone, train=path, dev_share=0, **options).rows("train").to_dict()


def refused(backbone: str, path: str, where: str, **options: Any) -> str:
    """The error, which must begin with the file and ``where``."""
    with pytest.raises(ValueError, match=f"^{re.escape(path)}{re.escape(where)}") as error:
        rows_of(backbone, path, **options)
    return str(error.value)


def lines(*rows: Any) -> str:
    return "\n".join(map(json.dumps, rows))


# Paths.


@pytest.mark.parametrize(
    "name",
    ["[v2]/t.csv", "train?.csv", "a*.csv", "{a,b}.csv", ".hidden/t.csv", "a b#%20.csv", "T.CSV"],
)
def test_a_path_is_no_pattern(words: str, tmp_path: Path, name: str) -> None:
    saved(tmp_path, "text,label\nwrong,x\nwrong,y\n", "train1.csv")  # a match of two patterns
    saved(tmp_path, "text,label\nwrong,x\nwrong,y\n", "ab.csv")
    assert rows_of(words, saved(tmp_path, TWO, name))["text"] == ["a b", "c"]


def test_a_path_may_be_relative_a_link_an_object_or_in_the_home_folder(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, TWO)
    (tmp_path / "link.csv").symlink_to("rows.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("rows.csv", "./link.csv", "~/rows.csv", Path("rows.csv")):
        assert rows_of(words, path)["label"] == [0, 1]


def test_a_folder_is_refused_with_a_file_in_it(words: str, tmp_path: Path) -> None:
    saved(tmp_path, TWO, "data.csv/t.csv")
    with pytest.raises(FileNotFoundError, match=r"data\.csv is a folder.*such as t\.csv"):
        rows_of(words, str(tmp_path / "data.csv"))


def test_a_file_of_the_same_size_and_date_is_read_again(words: str, tmp_path: Path) -> None:
    found = []
    for text in ("a b", "c d"):
        path = saved(tmp_path, f"text,label\n{text},x\n{text},y\n")
        os.utime(path, (1, 1))
        data = TextClassification(words, train=path, dev_share=0)
        found.append((data.rows("train")["text"][0], data.tokens("train")["input_ids"][0]))
    assert found == [("a b", [0, 2, 3]), ("c d", [0, 4, 5])]


# Cells, rows and lines.


@pytest.mark.parametrize(
    ("content", "where", "cause"),
    [
        ("text,label\na,x\nb, c,y\n", ", row 2: ", "3 cells, and the header has 2: put cells"),
        ("text,label\na,x\nb\n", ", row 2: ", "1 cell, and the header has 2: add the missing"),
        ("text,label\na,x\n\nb,y\n", ", row 2: ", "it is blank"),
        ('text,label\n"a\nb",x\n\nb,y\n', ", row 2: ", "it is blank"),
        ("text,label,label\na,x,y\n", ", header: ", "2 columns 'label'"),
        ("\n\na,x\n", ", header: ", "it is blank"),
        ("", "", "has no rows"),
        ("text,label\n", "", "has no rows"),
        ("text,label\n\n\n", "", "has no rows"),
        ('text,label\na,x\n"b,y\nc,z\n', ", row 2: ", "not well-formed"),
        ('text,label\n"a" b,x\n', ", row 1: ", "not well-formed"),
        ("text,label\na,x\nb\rc,y\n", ", row 2: ", "not well-formed (new-line character"),
        ("text,label\na,x\nb\0,y\n", ", row 2: ", "a NUL byte"),
        (b"text,label\na,x\ncaf\xe9,y\n", ", row 2: ", "the byte 0xe9 is not UTF-8"),
        (b"caf\xe9,label\na,x\n", ", header: ", "the byte 0xe9 is not UTF-8"),
        (TWO.encode("utf-16"), ", header: ", "is not UTF-8"),
        (TWO.encode("utf-16-le"), ", header: ", "a NUL byte"),
    ],
)
def test_a_damaged_csv_file_is_named_with_the_row(
    words: str, tmp_path: Path, content: str | bytes, where: str, cause: str
) -> None:
    message = refused(words, saved(tmp_path, content), where)
    assert cause in message
    assert "truncated" not in message


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + TWO,
        TWO.replace("\n", "\r\n"),
        TWO.replace("\n", "\r"),
        TWO.replace("\n", "\r\r\n"),
        TWO + "\n\n",
        TWO.rstrip(),
        ",text,label\n0,a b,x\n1,c,y\n",
        '"text","label"\n"a b","x"\n"c","y"\n',
    ],
)
def test_a_sound_csv_file_is_read(words: str, tmp_path: Path, content: str) -> None:
    assert rows_of(words, saved(tmp_path, content)) == {"text": ["a b", "c"], "label": [0, 1]}


def test_a_cell_may_be_long_and_hold_line_ends_and_separators(words: str, tmp_path: Path) -> None:
    long, odd = "a " * 100_000, "a,\nb \u2028 \x0c \x85 c"
    path = saved(tmp_path, f'text,label\n{long},x\n"{odd}",y\n')
    assert rows_of(words, path)["text"] == [long, odd]


def test_rows_are_counted_by_records_not_by_lines(words: str, tmp_path: Path) -> None:
    path = saved(tmp_path, 'text,label\n"a\nb\nc",x\n"",y\n')
    refused(words, path, ", row 2, column 'text': the text is empty")


def test_a_tab_separated_line_with_a_tab_too_many_is_refused(words: str, tmp_path: Path) -> None:
    path = saved(tmp_path, 'text\tlabel\n"a\tx\nb\tc\ty\n', "rows.tsv")
    assert "remove tabs" in refused(words, path, ", row 2: it has 3 cells, and the header has 2")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_blank_line_does_not_renumber_rows_to_predict(
    words: str, tmp_path: Path, kind: str
) -> None:
    rows = {"csv": "text\na\n\nb\n", "jsonl": '{"text": "a"}\n\n{"text": "b"}\n'}[kind]
    path = saved(tmp_path, rows, f"new.{kind}")
    data = TextClassification(words, predict=path, labels=["x", "y"])
    with pytest.raises(ValueError, match=rf"new\.{kind}, row 2: it is blank.*delete the line"):
        data.rows("predict")


# JSON.


@pytest.mark.parametrize(
    ("content", "where", "cause"),
    [
        ('{"text": "a", "label": "x"}\n{"text": "b", "la', ", row 2: ", "truncated or not a json"),
        ('[{"text": "a", "label": "x"}, {"text": "b"', ", row 2: ", "truncated or not a json"),
        ('[{"text": "a", "label": "x"}] 1', ", row 2: ", "truncated or not a json"),
        ('{"text": "a", "label": "x"}\n["b", "y"]', ", row 2: ", "['b', 'y'] is not a row"),
        ('{"text": "a", "label": "x"}\n{}', ", row 2: ", "{} is not a row"),
        ('{"text": "a", "text": "b", "label": "x"}', ", row 1: ", "2 columns 'text'"),
        ('{"text": "a", "label": "x"}\n\n{"text": "b", "label": "x"}', ", row 2: ", "blank"),
        ('{"text": "a"}\n{"text": ' + "[" * 99_999, ", row 2: ", "nested too deeply"),
        (b'{"text": "a"}\n{"text": "\xff"}', ", row 2: ", "0xff is not UTF-8"),
        ('{"text": "a"}\n{"text": ' + "9" * 5_000 + "}", ", row 2: ", "4300 digits"),
        ('{"a": 1, "\\ud800": 2}', ", row 1: ", "half of a surrogate pair"),
        ("[]", "", "has no rows"),
        ("", "", "has no rows"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_damaged_json_file_is_named_with_the_row(
    words: str, tmp_path: Path, kind: str, content: str | bytes, where: str, cause: str
) -> None:
    assert cause in refused(words, saved(tmp_path, content, f"rows.{kind}"), where)


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("form", ["lines", "list", "indented list", "CR", "BOM"])
def test_json_may_be_lines_or_a_list(words: str, tmp_path: Path, kind: str, form: str) -> None:
    rows = [{"text": "a b", "label": "x", "more": [1]}, {"more": {"b": 2}, "label": "y", "text": 7}]
    content = {
        "lines": lines(*rows),
        "list": json.dumps(rows),
        "indented list": " \n" + json.dumps(rows, indent=2),
        "CR": lines(*rows).replace("\n", "\r"),
        "BOM": "\ufeff" + lines(*rows),
    }[form]
    path = saved(tmp_path, content, f"rows.{kind}")
    assert rows_of(words, path) == {"text": ["a b", "7"], "label": [0, 1]}


# Values.


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (["one", "two"], "['one', 'two'] is a list, expected a text: join its words"),
        ({"de": "eins"}, "{'de': 'eins'} is a dictionary, expected a text"),
        (True, "True is a bool, expected a text"),
        (float("nan"), "nan is a missing value"),
        ("\ud800", "'\\ud800' contains half of a surrogate pair"),
        (None, "the text is empty"),
    ],
)
@pytest.mark.parametrize("kind", [TextClassification, TextToText, CausalText, ProfileDataModule])
def test_only_a_text_is_a_text(
    words: str, tmp_path: Path, kind: Any, value: Any, cause: str
) -> None:
    good = {"text": "a", "source": "a", "target": "b", "label": "x", "profile": "p"}
    for column in {TextToText: ["source", "target"]}.get(kind, ["text"]):
        path = saved(tmp_path, lines(good, {**good, column: value}), "rows.jsonl")
        with pytest.raises(ValueError, match=re.escape(f"row 2, column {column!r}: {cause}")):
            kind(words, train=path, dev_share=0).rows("train")


@pytest.mark.parametrize("column", ["text", "prompt"])
@pytest.mark.parametrize("form", [list, dict, str, json.dumps])
def test_messages_are_refused_with_the_remedy(
    words: str, tmp_path: Path, column: str, form: Any
) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    value = messages[0] if form is dict else form(messages)
    row = {"text": "a", "prompt": "b", column: value}
    data = CausalText(words, train=saved(tmp_path, lines(row), "c.jsonl"), prompt="prompt")
    message = rf"c\.jsonl, row 1, column '{column}': .*messages.*apply_chat_template"
    with pytest.raises(ValueError, match=message):
        data.rows("train")


def test_lists_that_python_has_printed_are_refused_and_json_is_not(
    words: str, tmp_path: Path
) -> None:
    printed = saved(tmp_path, "text,label\n\"['a', 'b']\",x\n\"['c']\",y\n")
    cause = "the text is a list or a dictionary as Python prints it"
    refused(words, printed, f", row 1, column 'text': {cause}")
    arrays = saved(tmp_path, "text,label\n\"['a' 'b']\",x\n\"['c']\",y\n")  # as NumPy prints
    refused(words, arrays, f", row 1, column 'text': {cause}")
    texts = ['["a"]', "[deleted]", "['a', 'b'] is a list", "it's", "[1, 2]"]
    path = saved(tmp_path, lines(*({"text": t, "label": "x"} for t in texts)), "rows.jsonl")
    assert rows_of(words, path)["text"] == texts


@pytest.mark.parametrize(
    ("values", "labels", "indices"),
    [
        ([1, "1", 2], ["1", "2"], [0, 0, 1]),
        ([1.0, 2, "1"], ["1", "2"], [0, 1, 0]),
        ([2.5, 1], ["1", "2.5"], [1, 0]),
        ([True, "False"], ["False", "True"], [1, 0]),
    ],
)
@pytest.mark.slow
def test_labels_of_mixed_types_are_one_label_if_they_read_alike(
    words: str, tmp_path: Path, values: list[Any], labels: list[str], indices: list[int]
) -> None:
    path = saved(tmp_path, lines(*({"text": "a", "label": v} for v in values)), "rows.jsonl")
    data = TextClassification(words, train=path, dev_share=0)
    assert data.labels == labels
    assert data.rows("train")["label"][:] == indices


def test_given_labels_match_numbers_by_either_spelling(words: str, tmp_path: Path) -> None:
    path = saved(tmp_path, lines(*({"text": "a", "label": v} for v in (1.0, 2.0))), "rows.jsonl")
    for labels in (["1", "2"], ["1.0", "2.0"], [1, 2]):
        assert rows_of(words, path, labels=labels)["label"] == [0, 1]


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (["x", "y"], "['x', 'y'] is a list, expected a label: a row has one"),
        ({"x": 1}, "{'x': 1} is a dictionary, expected a label"),
        (float("nan"), "the label is missing"),
        (" ", "the label is missing"),
        ("NaN", "the label is 'NaN', a missing value"),
        ("<NA>", "the label is '<NA>', a missing value"),
    ],
)
def test_what_is_no_label_is_named_when_labels_are_collected(
    words: str, tmp_path: Path, value: Any, cause: str
) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": value}]
    data = TextClassification(words, train=saved(tmp_path, lines(*rows), "rows.jsonl"))
    with pytest.raises(ValueError, match=re.escape(f"row 2, column 'label': {cause}")):
        _ = data.labels


@pytest.mark.parametrize("pair", [("a", " a"), ("a", "A"), ("1", "1.0"), ("7", "007")])
def test_one_label_written_in_two_ways_is_refused_unless_both_are_named(
    words: str, tmp_path: Path, pair: tuple[str, str]
) -> None:
    path = saved(tmp_path, f"text,label\na,{pair[0]}\nb,{pair[1]}\n")
    message = refused(words, path, ", column 'label': the labels ")
    assert "look like one class" in message
    assert rows_of(words, path, labels=list(pair))["label"] == [0, 1]


def test_a_class_may_be_called_nan_if_it_is_named(words: str, tmp_path: Path) -> None:
    path = saved(tmp_path, "text,label\na,naan\nb,nan\n")
    assert rows_of(words, path, labels=["naan", "nan"])["label"] == [0, 1]


@pytest.mark.parametrize(
    ("columns", "where", "cause"),
    [
        ({"text": [["a"]], "label": ["x"]}, ", row 1, column 'text': ", "is a list"),
        ({"text": [b"a"], "label": ["x"]}, ", row 1, column 'text': ", "b'a' is a bytes"),
        ({"text": ["a", None], "label": ["x"] * 2}, ", row 2, column 'text': ", "is empty"),
        ({"text": ["a"], "label": [float("nan")]}, ", row 1, column 'label': ", "is missing"),
        ({"text": pa.array([], pa.string())}, "", "has no rows"),
        ({"text": pa.array([b"caf\xe9"]).view(pa.string()), "label": ["x"]}, "", "UTF8"),
        ({"text": ["a"], "label": ["x"], "label\0": ["x"]}, "", "contains a NUL character"),
    ],
)
def test_a_parquet_file_is_checked_like_the_others(
    words: str, tmp_path: Path, columns: dict[str, Any], where: str, cause: str
) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(columns), path)
    assert cause in refused(words, str(path), where)


@pytest.mark.parametrize("features", [{"text": "string"}, {"text": {"_type": "Value"}}])
def test_damaged_types_of_a_parquet_file(words: str, tmp_path: Path, features: dict) -> None:
    """They are in the metadata that `datasets` writes."""
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": ["a"], "label": ["x"]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "rows.parquet")
    assert "the types of its columns" in refused(words, str(tmp_path / "rows.parquet"), "")


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_nul_in_the_name_of_a_column_is_refused(words: str, tmp_path: Path, kind: str) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label\0": "y"}]
    content = lines(*rows) if kind == "jsonl" else json.dumps(rows)
    message = refused(words, saved(tmp_path, content, f"rows.{kind}"), ", row 2: ")
    assert "the name of the column 'label\\x00' contains a NUL character" in message


def test_parquet_keeps_categories_and_whole_numbers(words: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    texts = pa.array(["a b", "c"]).dictionary_encode()
    pq.write_table(pa.table({"text": texts, "label": [2.0, 1.0]}), path)
    assert rows_of(words, path) == {"text": ["a b", "c"], "label": [1, 0]}
    pq.write_table(pa.table([["a"], ["x"], ["y"]], names=["text", "label", "label"]), path)
    assert "2 columns 'label'" in refused(words, str(path), ": ")
