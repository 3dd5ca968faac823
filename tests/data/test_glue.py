from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from lightning_pelt.data import GLUE, _table_io
from lightning_pelt.data._glue_tasks import TASKS


def save(folder: Path, **splits: list[dict[str, Any]]) -> str:
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def rows_of(task: str, count: int = 3, start: int = 0) -> list[dict[str, Any]]:
    spec = TASKS[task]
    return [
        {
            "text": f"a {i}",
            **({"text2": f"b {i}"} if spec.text2 else {}),
            "label": i % len(spec.labels) if spec.labels else i / 2,
        }
        for i in range(start, start + count)
    ]


# Wang et al. (2019), table 1, with UniPELT's order of metrics; the label order is the hub's.
EXPECTED = {
    "cola": (False, ["unacceptable", "acceptable"], ("matthews",)),
    "sst2": (False, ["negative", "positive"], ("accuracy",)),
    "mrpc": (True, ["not_equivalent", "equivalent"], ("f1", "accuracy")),
    "stsb": (True, None, ("spearman", "pearson")),
    "qqp": (True, ["not_duplicate", "duplicate"], ("f1", "accuracy")),
    "mnli": (True, ["entailment", "neutral", "contradiction"], ("accuracy",)),
    "qnli": (True, ["entailment", "not_entailment"], ("accuracy",)),
    "rte": (True, ["entailment", "not_entailment"], ("accuracy",)),
    "wnli": (True, ["not_entailment", "entailment"], ("accuracy",)),
}


@pytest.mark.parametrize("task", EXPECTED)
def test_each_task_from_a_folder(words: str, tmp_path: Path, task: str) -> None:
    rows = rows_of(task)
    folder = save(tmp_path / task, train=rows, dev=rows[:2])
    for location in (folder, str(tmp_path)):
        data = GLUE(words, task, folder=location, batch_size=3)  # type: ignore[arg-type]
        assert (data.pair, data.labels, data.metrics) == EXPECTED[task]
        assert data.splits["train"].to_list() == rows
        assert data.splits["dev"].to_list() == data.splits["test"].to_list() == rows[:2]
        (batch,) = data.train_dataloader()
        assert batch["labels"].is_floating_point() == (task == "stsb")
        assert sorted(batch["labels"].tolist()) == sorted(row["label"] for row in rows)


OFFICIAL = {
    "CoLA": ("cola", 'gj04\t1\t\tThe "lone quote.\ngj04\t0\t*\tBad it.\n'),
    "SST-2": ("sst2", "sentence\tlabel\ngood \t1\nbad \t0\n"),
    "MRPC": ("mrpc", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tx\ty\n"),
    "STS-B": ("stsb", "index\tsentence1\tsentence2\tscore\n0\tx\ty\t3.25\n"),
    "QQP": ("qqp", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tx\t\t1\n"),
    "QNLI": ("qnli", "index\tquestion\tsentence\tlabel\n0\tx\ty\tnot_entailment\n"),
}
CONTENT = {
    "cola": [{"text": 'The "lone quote.', "label": 1}, {"text": "Bad it.", "label": 0}],
    "sst2": [{"text": "good ", "label": 1}, {"text": "bad ", "label": 0}],
    "mrpc": [{"text": "x", "text2": "y", "label": 1}],
    "stsb": [{"text": "x", "text2": "y", "label": 3.25}],
    "qqp": [{"text": "x", "text2": "", "label": 1}],
    "qnli": [{"text": "x", "text2": "y", "label": 1}],
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files(words: str, tmp_path: Path, name: str) -> None:
    task, content = OFFICIAL[name]
    (tmp_path / name).mkdir()
    for split in ("train", "dev"):
        (tmp_path / name / f"{split}.tsv").write_text(content)
    data = GLUE(words, task, folder=str(tmp_path))  # type: ignore[arg-type]
    assert data.splits["train"].to_list() == CONTENT[task]


def test_mnlis_official_files_and_its_mismatched_rows(words: str, tmp_path: Path) -> None:
    head = "index\tsentence1\tsentence2\tlabel1\tgold_label\n"
    for split, label in (("train", "neutral"), ("dev_matched", "entailment")):
        (tmp_path / f"{split}.tsv").write_text(f"{head}0\tx\ty\t-\t{label}\n")
    (tmp_path / "dev_mismatched.tsv").write_text(f"{head}0\tx\ty\t-\tcontradiction\n")
    (tmp_path / "test_matched.tsv").write_text("index\tsentence1\tsentence2\n0\tx\ty\n")
    data = GLUE(words, "mnli", folder=str(tmp_path), mismatched=True)
    assert data.splits["train"]["label"][:] == [1]
    assert [batch["labels"].tolist() for batch in data.val_dataloader()] == [[0]]
    assert [batch["labels"].tolist() for batch in data.test_dataloader()] == [[2]]
    matched = GLUE(words, "mnli", folder=str(tmp_path)).test_dataloader()
    assert [batch["labels"].tolist() for batch in matched] == [[0]]


def test_official_test_rows_without_labels_are_predicted_and_dev_is_tested(
    words: str, tmp_path: Path
) -> None:
    rows, secret = rows_of("sst2", 4), [{"text": "secret", "label": -1}]
    data = GLUE(words, "sst2", folder=save(tmp_path / "x", train=rows, dev=rows[:2], test=secret))
    assert data.splits["test"].to_list() == rows[:2]
    assert data.rows("predict").to_list() == [{"text": "secret"}]
    (batch,) = data.predict_dataloader()
    assert "labels" not in batch


def test_test_rows_with_labels_are_tested(words: str, tmp_path: Path) -> None:
    rows = rows_of("sst2", 6)
    folder = save(tmp_path / "x", train=rows, dev=rows[:2], test=rows[3:])
    data = GLUE(words, "sst2", folder=folder)
    assert data.splits["test"].to_list() == data.rows("predict").to_list() == rows[3:]


def test_the_low_resource_protocol(words: str, tmp_path: Path) -> None:
    train, dev = rows_of("sst2", 1200), rows_of("sst2", 5, start=5000)
    folder = save(tmp_path / "x", train=train, dev=dev, test=train[:3])

    def texts(seed: int) -> dict[str, list[str]]:
        data = GLUE(words, "sst2", folder=folder, low_resource=100, data_seed=seed)
        return {name: rows["text"][:] for name, rows in data.splits.items()}

    for seed in (42, 111):
        order = [train[i]["text"] for i in np.random.default_rng(seed).permutation(1200)]
        assert texts(seed) == {
            "train": order[:100],
            "dev": order[100:1100],
            "test": [row["text"] for row in dev],
        }


def test_too_few_rows_for_the_protocol_are_refused(words: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "x", train=rows_of("sst2", 1099), dev=rows_of("sst2"))
    with pytest.raises(ValueError, match=r"low_resource=100 .* sst2 has 1099 training rows"):
        _ = GLUE(words, "sst2", folder=folder, low_resource=100).splits


def test_from_the_hub(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features(
        {
            "premise": Value("string"),
            "hypothesis": Value("string"),
            "label": ClassLabel(names=["entailment", "neutral", "contradiction"]),
        }
    )
    asked = []

    def load(name: str, config: str, split: str) -> Dataset:
        asked.append((name, config, split))
        label = -1 if split.startswith("test") else 2
        columns = {"premise": [f"p {split}"], "hypothesis": ["h"], "label": [label]}
        return Dataset.from_dict(columns, features=features)

    monkeypatch.setattr(_table_io, "load_dataset", load)
    splits = GLUE(words, "mnli").splits
    assert splits["train"].to_list() == [{"text": "p train", "text2": "h", "label": 2}]
    assert splits["test"]["text"][:] == ["p validation_matched"]
    assert splits["predict"].to_list() == [{"text": "p test_matched", "text2": "h"}]
    assert set(asked) == {
        ("nyu-mll/glue", "mnli", split) for split in ("train", "validation_matched", "test_matched")
    }


def test_an_unreachable_hub_names_the_folder(words: str) -> None:
    with pytest.raises(OSError, match=r"'nyu-mll/glue' cannot be reached .* folder="):
        _ = GLUE(words, "rte").splits


# Raffel et al. (2020), appendix D: what the processed inputs look like.
T5 = {
    "cola": ({"text": "a b", "label": 1}, "cola sentence: a b", "acceptable"),
    "stsb": (
        {"text": "a", "text2": "b", "label": 3.25},
        "stsb sentence1: a sentence2: b",
        "3.2",
    ),
    "qnli": (
        {"text": "a", "text2": "b", "label": 0},
        "qnli question: a sentence: b",
        "entailment",
    ),
    "mnli": ({"text": "a", "text2": "b", "label": 1}, "mnli hypothesis: b premise: a", "neutral"),
}


@pytest.mark.parametrize("task", T5)
@pytest.mark.slow
def test_rows_as_text(minilm: str, tmp_path: Path, task: str) -> None:
    row, source, target = T5[task]
    folder = save(tmp_path / "x", train=[row], dev=[row])
    data = GLUE(minilm, task, folder=folder, as_text=True)  # type: ignore[arg-type]
    (batch,) = data.train_dataloader()
    assert batch["input_ids"].tolist() == [data.tokenizer(source)["input_ids"]]
    assert batch["labels"].tolist() == [data.tokenizer(target)["input_ids"]]


def test_wrong_arguments_are_named(words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown GLUE task 'sst': did you mean 'sst2'\?"):
        GLUE(words, "sst")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="only MNLI has mismatched rows, and the task is 'rte'"):
        GLUE(words, "rte", mismatched=True)
    with pytest.raises(FileNotFoundError, match="has no train rows: expected a file"):
        _ = GLUE(words, "rte", folder=str(tmp_path)).splits
    folder = save(tmp_path / "x", train=[{"text": "a", "label": 2}], dev=rows_of("sst2"))
    with pytest.raises(ValueError, match=r"train\.jsonl, row 1, column 'label': unknown label 2"):
        _ = GLUE(words, "sst2", folder=folder).splits


@pytest.mark.parametrize(
    ("task", "train", "dev"),
    [("cola", 8551, 1043), ("stsb", 5749, 1500), ("mrpc", 3668, 408), ("qnli", 9999, 5463)],
)
@pytest.mark.slow
def test_real_files(words: str, shared_data: Path, task: str, train: int, dev: int) -> None:
    data = GLUE(words, task, folder=str(shared_data), low_resource=100)  # type: ignore[arg-type]
    sizes = {name: len(rows) for name, rows in data.splits.items()}
    assert sizes == {"train": 100, "dev": 1000, "test": dev}
    full = GLUE(words, task, folder=str(shared_data))  # type: ignore[arg-type]
    assert (len(full.splits["train"]), len(full.splits["dev"])) == (train, dev)
