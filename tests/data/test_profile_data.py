from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from jsonargparse import ArgumentParser
from torch import Tensor

from lightning_pelt.data import TextClassification, TextDataModule, _table_io
from lightning_pelt.data._profile_index import DROPPED, ProfileIndex
from lightning_pelt.data.bucket_sampler import ResumableLoader
from lightning_pelt.data.profile_data import ProfileDataModule

LETTERS = "abcdefghijklmnopqrstuvwxy"  # of the tokenizer `words`: a is 2, b is 3, ...
NAMES = ["zoe", "ann", "Bob", "mia"]  # sorted as strings: Bob, ann, mia, zoe


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(profile: Any, text: str = "a", label: str = "pos") -> dict[str, Any]:
    return {"text": text, "label": label, "profile": profile}


def many(rows: int = 46) -> list[dict[str, Any]]:
    """Rows of one to fifteen words, known by their label, whose profiles take turns unevenly."""
    random = np.random.default_rng(5)
    return [
        row(NAMES[i % 7 % 4], " ".join(LETTERS[i % 25] * random.integers(1, 16)), label=str(i))
        for i in range(rows)
    ]


def seen(batches: Any) -> list[tuple[int, int]]:
    """The rows of batches in their order: label and profile."""
    return [
        pair
        for batch in batches
        for pair in zip(batch["labels"].tolist(), batch["profile"].tolist(), strict=True)
    ]


@pytest.mark.parametrize("bucketed", [True, False])
def test_batches_mix_profiles_and_hold_their_indices(
    words: str, tmp_path: Path, bucketed: bool
) -> None:
    rows = many()
    path = jsonl(tmp_path / "rows.jsonl", rows)
    options: dict[str, Any] = {"batch_size": 6, "bucketed": bucketed}
    data = ProfileDataModule(words, train=path, dev=path, test=path, **options)
    assert data.profiles == ["Bob", "ann", "mia", "zoe"]
    assert data.labels is not None
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        batches = list(loader)
        assert {batch["profile"].dtype for batch in batches} == {torch.int64}
        assert {batch["profile"].shape for batch in batches} <= {(6,), (5,), (4,)}
        assert max(len(set(batch["profile"].tolist())) for batch in batches) > 2
        said = {data.labels[label]: data.profiles[profile] for label, profile in seen(batches)}
        assert said == {row["label"]: row["profile"] for row in rows}


def test_the_order_of_the_rows_is_that_of_plain_texts(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", many())

    def epochs(kind: type[TextClassification]) -> list[list[list[int]]]:
        loader: Any = kind(words, train=path, dev_share=0.2, batch_size=6).train_dataloader()
        orders = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            orders.append([batch["labels"].tolist() for batch in loader])
        return orders

    assert epochs(ProfileDataModule) == epochs(TextClassification)


def test_an_epoch_resumes_where_it_stopped(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", many())

    def loader() -> ResumableLoader:
        made = ProfileDataModule(words, train=path, dev_share=0, batch_size=6).train_dataloader()
        assert isinstance(made, ResumableLoader)
        return made

    whole = [seen([batch]) for batch in loader()]
    broken, resumed = loader(), loader()
    running = iter(broken)
    for _ in range(3):
        next(running)
    resumed.load_state_dict(broken.state_dict())
    assert [seen([batch]) for batch in resumed] == whole[3:]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("names", [["007", "7", "8"], ["NA", "7", "NA"], [10, 9, 10]])
def test_every_kind_of_file_gives_the_same_profiles(
    words: str, tmp_path: Path, kind: str, names: list[Any]
) -> None:
    rows = [{"user": name, "text": "a b", "label": "x"} for name in names]
    path, frame = tmp_path / f"rows.{kind}", pd.DataFrame(rows)
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "jsonl":
        jsonl(path, rows)
    else:
        frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    data = ProfileDataModule(words, train=str(path), profile_column="user", dev_share=0)
    assert data.profiles == sorted(set(map(str, names)))
    assert [data.profiles[i] for i in data.splits["train"]["profile"]] == list(map(str, names))


def test_a_class_column_of_the_hub_is_read_by_name_and_only_trained_names_count(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = Features(
        {
            "text": Value("string"),
            "label": Value("string"),
            "profile": ClassLabel(names=["zoe", "nobody", "ann"]),
        }
    )

    def load(name: str, config: str | None, split: str) -> Dataset:
        columns = {"text": ["a", "b"], "label": ["x", "y"], "profile": [0, 2]}
        return Dataset.from_dict(columns, features=features)

    monkeypatch.setattr(_table_io, "load_dataset", load)
    data = ProfileDataModule(words, dataset="me/users", train="train", dev_share=0)
    assert data.profiles == ["ann", "zoe"]
    assert data.splits["train"]["profile"][:] == [1, 0]


def test_only_keeps_rows_of_some_and_the_index_of_all(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", many())
    numbers = {
        name: sorted(row["label"] for row in many() if row["profile"] == name) for name in NAMES
    }

    def rows(only: Any, split: str = "train") -> tuple[list[str], set[int]]:
        data = ProfileDataModule(words, train=path, test=path, only=only, dev_share=0)
        assert data.profiles == ["Bob", "ann", "mia", "zoe"]
        assert data.labels is not None
        chosen = data.splits[split]
        return sorted(data.labels[i] for i in chosen["label"]), set(chosen["profile"])

    assert rows("mia") == rows("mia", "test") == (numbers["mia"], {2})
    assert rows(["zoe", "Bob"]) == (sorted(numbers["zoe"] + numbers["Bob"]), {0, 3})


def test_one_profile_alone_has_the_dev_rows_it_has_among_all(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", many())

    def dev(only: str | None) -> set[tuple[int, int]]:
        rows = ProfileDataModule(words, train=path, only=only, dev_share=0.4).splits["dev"]
        return set(zip(rows["label"], rows["profile"], strict=True))

    ann = {pair for pair in dev(None) if pair[1] == 1}
    assert dev("ann") == ann != set()


def test_integers_may_be_chosen_too(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [row(10), row(9), row(10)])
    only: Any = 10
    data = ProfileDataModule(words, train=path, only=only, dev_share=0)
    assert data.splits["train"]["profile"][:] == [0, 0]


def test_small_profiles_are_dropped_from_every_split(
    words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = jsonl(tmp_path / "train.jsonl", [row(name) for name in "aabbbcbcd"])  # 2, 4, 2, 1
    dev = jsonl(tmp_path / "dev.jsonl", [row(name) for name in "abcdb"])
    data = ProfileDataModule(words, train=train, dev=dev, min_rows=3)
    with caplog.at_level("INFO"):
        assert data.profiles == ["b"]
    assert "min_rows 3 drops the profiles 'a', 'c', 'd'" in caplog.text
    assert {name: rows["profile"][:] for name, rows in data.splits.items()} == {
        "train": [0] * 4,
        "dev": [0] * 2,
    }
    kept = ProfileDataModule(words, train=train, dev=dev, min_rows=2)
    assert kept.profiles == ["a", "b", "c"]
    assert kept.splits["dev"]["profile"][:] == [0, 1, 2, 1]


def test_a_long_list_of_small_profiles_is_cut(
    words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [row(name) for name in "abcdefghzz"])
    with caplog.at_level("INFO"):
        assert ProfileDataModule(words, train=path, min_rows=2).profiles == ["z"]
    assert "'a', 'b', 'c', 'd', 'e' and 3 more" in caplog.text


@pytest.mark.parametrize("split", ["dev", "test", "predict"])
def test_a_profile_that_is_not_in_train_is_named_or_dropped(
    words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str
) -> None:
    train = jsonl(tmp_path / "train.jsonl", [row("Lee Moran"), row("Ed Mazza")])
    other = jsonl(tmp_path / "other.jsonl", [row("Ed Mazza"), row("Lee Morna"), row("Lee Moran")])
    files = {"train": train, split: other, "dev_share": 0}
    message = (
        f"{other}, row 2, column 'profile': unknown profile 'Lee Morna': did you mean 'Lee Moran'? "
        f"{train} has no rows of it: add some, or drop these with unseen='drop'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _ = ProfileDataModule(words, **files).splits
    with caplog.at_level("INFO"):
        data = ProfileDataModule(words, unseen="drop", **files)
        assert data.splits[split]["profile"][:] == [0, 1]
    dropped = f"{other}: dropped 1 rows of profiles without training rows: 'Lee Morna'"
    assert dropped in caplog.text


def test_a_changed_training_file_moves_the_indices_of_the_others(
    words: str, tmp_path: Path
) -> None:
    dev = jsonl(tmp_path / "dev.jsonl", [row("mia")])

    def profile(names: str) -> Tensor:
        train = jsonl(tmp_path / "train.jsonl", [row(name) for name in names.split()])
        (batch,) = ProfileDataModule(words, train=train, dev=dev).val_dataloader()
        return batch["profile"]

    assert profile("mia zoe").tolist() == [0]
    assert profile("mia zoe ann").tolist() == [1]


def test_rows_to_predict_may_have_profiles(words: str, tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", [row("ann"), row("zoe")])
    for name, rows in (
        ("with.jsonl", [{"text": "a b", "profile": "zoe"}, {"text": "c", "profile": "ann"}]),
        ("without.jsonl", [{"text": "a b"}, {"text": "c"}]),
    ):
        new = jsonl(tmp_path / name, rows)
        data = ProfileDataModule(words, train=train, predict=new, dev_share=0)
        (batch,) = data.predict_dataloader()
        assert batch["attention_mask"].sum(1).tolist() == [3, 2]
        assert "labels" not in batch
        assert ("profile" in batch) == (name == "with.jsonl")
        assert batch.get("profile", torch.tensor([1, 0])).tolist() == [1, 0]
    csv = tmp_path / "without.csv"
    csv.write_text("text\na b\n")
    data = ProfileDataModule(words, train=train, predict=str(csv), dev_share=0)
    (batch,) = data.predict_dataloader()
    assert set(batch) == {"input_ids", "attention_mask"}


def test_the_test_rows_are_predicted_with_their_profiles(words: str, tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", [row("ann"), row("zoe")])
    data = ProfileDataModule(words, train=train, test=train, dev_share=0)
    (batch,) = data.predict_dataloader()
    assert batch["profile"].tolist() == [0, 1]
    assert "labels" not in batch


@pytest.mark.parametrize("value", ["", "  ", None])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_profile_is_named(words: str, tmp_path: Path, value: Any, split: str) -> None:
    good = jsonl(tmp_path / "good.jsonl", [row("ann")])
    bad = jsonl(tmp_path / "bad.jsonl", [row("ann"), row("ann"), row(value)])
    message = f"{bad}, row 3, column 'profile': the profile is missing"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _ = ProfileDataModule(words, **{"train": good, split: bad}).splits


def test_a_number_with_a_fraction_is_no_profile(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [row(1.0), row(2.5)])
    with pytest.raises(ValueError, match=r"row 1, column 'profile': the profile 1\.0 is neither a"):
        _ = ProfileDataModule(words, train=path).splits


def test_a_file_without_any_profile_is_named(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [row(""), row("")])
    with pytest.raises(ValueError, match=r"rows\.jsonl: the column 'profile' is empty in every"):
        _ = ProfileDataModule(words, train=path).profiles


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize("unseen", ["error", "drop"])
def test_a_missing_column_is_named_with_the_nearest(
    words: str, tmp_path: Path, split: str, unseen: Any
) -> None:
    good = jsonl(tmp_path / "good.jsonl", [row("ann")])
    bad = jsonl(tmp_path / "bad.jsonl", [{"text": "a", "label": "pos", "profil": "ann"}])
    with pytest.raises(ValueError, match=r"bad\.jsonl: unknown column 'profile': did you mean 'pr"):
        _ = ProfileDataModule(words, **{"train": good, split: bad}, unseen=unseen).splits


def test_a_profile_whose_rows_all_became_dev_is_named(words: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [row(f"p{i:02}") for i in range(20)])
    message = r"the dev split took every training row of 'p\d\d', .*: give dev=, or lower dev_share"
    with pytest.raises(ValueError, match=message):
        _ = ProfileDataModule(words, train=path, dev_share=0.2).splits
    assert len(ProfileDataModule(words, train=path, dev_share=0).splits["train"]) == 20


def test_a_profile_without_rows_to_evaluate_still_trains(
    words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = jsonl(tmp_path / "train.jsonl", [row("ann"), row("zoe")])
    dev = jsonl(tmp_path / "dev.jsonl", [row("zoe")])
    data = ProfileDataModule(words, train=train, dev=dev, only="ann")
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert "No dev split: none of its rows belongs to a selected profile" in caplog.text
    assert data.val_dataloader() == []
    assert seen(data.train_dataloader()) == [(0, 0)]
    with pytest.raises(ValueError, match="no row to predict belongs to a selected profile"):
        _ = ProfileDataModule(words, train=train, test=train, predict=dev, only="ann").splits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "an"}, "unknown profile 'an': did you mean 'ann'?"),
        ({"only": ["ann", "xyz"]}, "unknown profile 'xyz': only takes profiles with training rows"),
        ({"only": []}, "only is empty"),
        ({"min_rows": 3}, "no profile has 3 rows, the largest has 2: lower min_rows"),
        ({"min_rows": 0}, "min_rows is 0, expected at least 1"),
        ({"unseen": "dorp"}, "unseen is 'dorp', expected 'error' or 'drop'"),
        ({"train": None, "labels": ["pos"]}, "the profiles are unknown: give train="),
    ],
)
def test_options_without_a_profile_are_refused(
    words: str, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [row("ann"), row("ann"), row("zoe")])
    with pytest.raises(ValueError, match=re.escape(message)):
        _ = ProfileDataModule(words, **{"train": path, "test": path, **options}).splits


def test_a_profile_is_found_without_looking_at_the_others() -> None:
    class Counted(str):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Counted.compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = tuple(Counted(f"user {i}") for i in range(2000))
    kind = ProfileIndex(names, dropped=("gone",))
    assert [kind(str(name)) for name in names] == [*range(2000)]
    assert kind("gone") == DROPPED
    assert Counted.compared < 3 * len(names)


def test_a_command_line_reads_the_options(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(TextDataModule, "data")
    rows = [{"text": "a", "label": name, "who": name} for name in ("x", "y", "z")]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    kind = "lightning_pelt.data.profile_data.ProfileDataModule"
    config = parser.parse_args(
        [
            f"--data={kind}", f"--data.backbone={words}", f"--data.train={path}",
            "--data.profile_column=who", "--data.only=[z, x]", "--data.unseen=drop",
            "--data.dev_share=0", "--data.max_length=8", "--data.labels=[z, y, x]",
        ]
    )  # fmt: skip
    data = parser.instantiate(config).data
    assert sorted(seen(data.train_dataloader())) == [(0, 2), (2, 0)]
    assert dict(data.hparams)["only"] == ["z", "x"]
    with pytest.raises(SystemExit):
        parser.parse_args([f"--data.help={kind}"])
    shown = " ".join(capsys.readouterr().out.split())
    for words_of_help in ("keep the rows of this profile", "name of the column of the profile"):
        assert words_of_help in shown


@pytest.mark.slow
def test_the_authors_of_news_are_read_with_options_only(minilm: str, shared_data: Path) -> None:
    folder = shared_data / "huffpost_authors"
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "dev", "test")}
    meta = json.loads((folder / "meta.json").read_text())
    data = ProfileDataModule(minilm, **files, label="label_name", max_length=64)
    assert data.profiles == sorted(meta["profiles"])
    assert data.labels == meta["labels"]
    data.setup("test")
    batches = list(data.test_dataloader())
    lines = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    assert Counter(seen(batches)) == Counter(
        (line["label"], data.profiles.index(line["profile"])) for line in lines
    )
