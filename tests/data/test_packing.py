"""Packing of tokenized examples: which rows, which columns, and the batches made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import DataCollatorWithFlattening

from lightning_pelt.data.packing import CollatePacked, best_fit, fill_rate, pack


def drawn(count: int = 60, most: int = 30, seed: int = 0) -> Dataset:
    """Random examples; the first token of each is unique."""
    draw = np.random.default_rng(seed)
    ids = [[1000 + i, *draw.integers(1, 99, draw.integers(0, most))] for i in range(count)]
    ids = [[int(token) for token in row] for row in ids]
    labels = [[-100 if draw.random() < 0.5 else token for token in row] for row in ids]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def taken_apart(packed: Dataset) -> list[dict[str, list[int]]]:
    """The examples of packed rows, by their positions."""
    found = []
    for row in packed:
        starts = [at for at, position in enumerate(row["position_ids"]) if position == 0]
        for begin, end in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True):
            assert row["position_ids"][begin:end] == [*range(end - begin)]
            found.append({n: row[n][begin:end] for n in ("input_ids", "labels")})
    return found


def test_on_paper() -> None:
    """6 and 2 fill a row of eight, and 5 and 3 another."""
    rows = {
        "input_ids": [[1] * 2, [2] * 5, [3] * 3, [4] * 6],
        "labels": [[9] * n for n in (2, 5, 3, 6)],
    }
    packed = pack(Dataset.from_dict(rows), 8)
    assert packed["input_ids"][:] == [[1] * 2 + [4] * 6, [2] * 5 + [3] * 3]
    assert packed["labels"][:] == [
        [-100, 9, -100, 9, 9, 9, 9, 9],
        [-100, 9, 9, 9, 9, -100, 9, 9],
    ]
    assert packed["position_ids"][:] == [[0, 1, *range(6)], [*range(5), *range(3)]]
    assert packed["length"][:] == [8, 8]
    assert fill_rate(packed, 8) == 1


@pytest.mark.parametrize("length", [30, 31, 64, 1000])
def test_every_example_is_in_one_row(length: int) -> None:
    examples = drawn()
    packed = pack(examples, length)
    assert max(packed["length"][:]) <= length
    assert packed["length"][:] == [len(ids) for ids in packed["input_ids"][:]]
    expected = {
        row["input_ids"][0]: {**row, "labels": [-100, *row["labels"][1:]]} for row in examples
    }
    found = taken_apart(packed)
    assert {row["input_ids"][0]: row for row in found} == expected
    assert len(found) == len(examples)


def test_no_more_rows_than_trl_needs() -> None:
    examples = drawn(400, most=60).remove_columns("labels")
    theirs = pytest.importorskip("trl.data_utils").pack_dataset(
        examples, seq_length=96, strategy="bfd"
    )
    ours = pack(examples, 96)
    assert len(ours) <= len(theirs)
    assert fill_rate(ours, 96) > 0.95


def test_rows_are_those_of_transformers_collator() -> None:
    """Which puts the examples of a batch into one row, for flash attention."""
    examples = drawn(3)
    theirs = DataCollatorWithFlattening()([*examples])
    ours = CollatePacked()([*pack(examples, 1000).remove_columns("length")])
    for name in ("input_ids", "labels", "position_ids"):
        assert torch.equal(ours[name], theirs[name])
    assert "attention_mask" not in {*ours, *theirs}


def test_equal_examples_give_equal_rows() -> None:
    examples = drawn()
    assert pack(examples, 40)[:] == pack(examples, 40)[:]
    moved = concatenate_datasets([examples.select(range(30, 60)), examples.select(range(30))])
    assert len(pack(moved, 40)) == len(pack(examples, 40))


def test_a_choice_of_rows_is_packed() -> None:
    examples = drawn()
    chosen = examples.select([5, 3, 40])
    assert {row["input_ids"][0] for row in taken_apart(pack(chosen, 100))} == {1005, 1003, 1040}
    both = pack(concatenate_datasets([examples, chosen]), 100)  # columns of several chunks
    assert len(taken_apart(both)) == 63


def test_without_labels_all_but_the_first_are_trained() -> None:
    packed = pack(Dataset.from_dict({"input_ids": [[1, 2], [3, 4]]}), 4)
    assert packed["labels"][:] == [[-100, 2, -100, 4]]


def test_further_columns() -> None:
    rows = {
        "input_ids": [[1, 2], [3, 4], [5, 6]],
        "attention_mask": [[1, 1]] * 3,
        "weight": [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]],
        "length": [2] * 3,
        "profile": [7, 3, 7],
    }
    packed = pack(Dataset.from_dict(rows), 8, same=("profile",))
    assert packed["input_ids"][:] == [[1, 2, 5, 6], [3, 4]]
    assert packed["weight"][:] == [[0.5, 1.0, 2.5, 3.0], [1.5, 2.0]]
    assert packed["profile"][:] == [7, 3]
    assert "attention_mask" not in packed.column_names
    batch = CollatePacked()([*packed])
    assert batch["profile"].tolist() == [7, 3]
    assert batch["weight"].dtype == torch.float32
    assert batch["weight"][1].tolist() == [1.5, 2.0, 0.0, 0.0]


def test_no_examples() -> None:
    examples = Dataset.from_dict({"input_ids": [[1, 2]]}).select([])
    packed = pack(examples, 8)
    assert len(packed) == 0
    assert {"input_ids", "labels", "position_ids", "length"} <= {*packed.column_names}
    assert fill_rate(packed, 8) == 1


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ({"text": ["a"]}, {}, "needs the column input_ids, and the rows have text"),
        ({"input_ids": [[1] * 9]}, {}, "example 0 has 9 tokens, and a packed row has length=8"),
        ({"input_ids": [[1], []]}, {}, "example 1 has no tokens"),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, {}, "has 2 input_ids and 1 labels"),
        (
            {"input_ids": [[1]], "labels": [3]},
            {},
            "one number per token in every column, and labels",
        ),
        ({"input_ids": [[1]], "text": ["a"]}, {}, r"pack with same=\('text',\)"),
        ({"input_ids": [[1, 0]], "attention_mask": [[1, 0]]}, {}, "are padded"),
        ({"input_ids": [[1]], "position_ids": [[0]]}, {}, "remove the column"),
        ({"input_ids": [[1], None]}, {}, "1 have none"),
        ({"input_ids": [[1, None]]}, {}, "some in input_ids are missing"),
        ({"input_ids": [[1]]}, {"same": ("profile",)}, "names 'profile', and the rows have"),
        ({"input_ids": [[1]]}, {"length": 0}, "length is 0"),
    ],
)
def test_refused(rows: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(Dataset.from_dict(rows), **{"length": 8, **options})


class Tokenizer:
    def __init__(self, pad: int | None, eos: int | None) -> None:
        self.pad_token_id, self.eos_token_id = pad, eos


@pytest.mark.parametrize(
    ("pad", "eos", "fill"), [(7, 9, 7), (0, 9, 0), (None, 9, 9), (None, None, 0)]
)
def test_padding_of_the_last_row(pad: int | None, eos: int | None, fill: int) -> None:
    rows = pack(Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5, 6], [8, 8]]}), 6)
    collate = CollatePacked(Tokenizer(pad, eos))  # type: ignore[arg-type]
    batch = collate(rows[:])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6], [8, 8, *[fill] * 4]]
    assert batch["labels"][1].tolist() == [-100, 8, *[-100] * 4]
    assert batch["position_ids"][1].tolist() == [0, 1, 0, 0, 0, 0]
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert set(batch) == {"input_ids", "labels", "position_ids"}


def test_a_fixed_length() -> None:
    rows = pack(Dataset.from_dict({"input_ids": [[1, 2, 3]]}), 6)
    batch = CollatePacked(length=6)([*rows])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 0]]
    with pytest.raises(ValueError, match="has 3 tokens, and the batch has length=2"):
        CollatePacked(length=2)([*rows])


def test_rows_without_positions() -> None:
    with pytest.raises(ValueError, match="needs position_ids, and there are only input_ids"):
        CollatePacked()([{"input_ids": [1, 2]}])


def test_best_fit_is_as_a_plain_search() -> None:
    """The fullest row that has room, the first of several; a new one if none has."""
    sizes = np.random.default_rng(1).integers(1, 20, 200).tolist()
    rows: list[list[int]] = []
    for number in sorted(range(200), key=lambda n: -sizes[n]):
        room = [(20 - sum(sizes[n] for n in row), row) for row in rows]
        fitting = [(space, row) for space, row in room if space >= sizes[number]]
        if fitting:
            min(fitting, key=lambda pair: pair[0])[1].append(number)
        else:
            rows.append([number])
    found = best_fit(sizes, 20)
    assert sorted(sum(sizes[n] for n in row) for row in found) == sorted(
        sum(sizes[n] for n in row) for row in rows
    )
