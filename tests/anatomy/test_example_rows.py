"""Rows by their content: what changes the hidden states of an example changes its digest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from lightning_pelt.anatomy.example_rows import (
    Rows,
    alone,
    argument_names,
    chosen_rows,
    example_rows,
    named_inputs,
)
from lightning_pelt.testing import tiny_bert, tiny_gpt2

BASE = tiny_bert().bert
IDS = torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
BATCH = {"input_ids": IDS, "attention_mask": MASK}


def rows(inputs: dict[str, Any], **options: Any) -> Rows:
    found = example_rows(BASE, inputs, **options)
    assert found is not None
    return found


def one(inputs: dict[str, Any], **options: Any) -> bytes:
    return rows(inputs, **options).digests[0]


def with_(name: str, value: Tensor) -> dict[str, Tensor]:
    return {**BATCH, name: value}


def test_equal_examples_have_equal_digests_in_every_batch() -> None:
    wider = {n: torch.cat([t, torch.zeros(2, 3, dtype=torch.long)], 1) for n, t in BATCH.items()}
    turned = {name: tensor.flip(0) for name, tensor in BATCH.items()}
    assert rows(BATCH).digests == rows(wider).digests == rows(turned).digests[::-1]
    assert len({*rows(BATCH).digests}) == 2


def test_what_stands_at_padding_does_not_matter() -> None:
    other = IDS.clone()
    other[0, 3] = 42
    types = torch.zeros_like(IDS)
    filled = types.clone()
    filled[0, 3] = 1
    assert one(with_("input_ids", other)) == one(BATCH)
    assert one(with_("token_type_ids", filled)) == one(with_("token_type_ids", types))


def test_padding_may_count() -> None:
    other = IDS.clone()
    other[0, 3] = 42
    assert one(with_("input_ids", other), padding=True) != one(BATCH, padding=True)
    assert rows(BATCH, padding=True).kept == [None, None]


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids"])
@pytest.mark.parametrize("place", [0, 2])
def test_every_real_token_matters(name: str, place: int) -> None:
    before = {**BATCH, name: BATCH.get(name, torch.zeros_like(IDS))}
    changed = before[name].clone()
    changed[0, place] += 1
    after = {**before, name: changed}
    assert one(before) != one(after)
    assert rows(before).digests[1] == rows(after).digests[1]


def test_the_place_of_an_example_in_its_row_matters() -> None:
    left = {"input_ids": IDS.roll(1, 1)[:1], "attention_mask": MASK.roll(1, 1)[:1]}
    assert one(left) != one(BATCH)
    assert rows(left).kept[0].tolist() == [1, 2, 3]


def test_holes_in_a_mask_matter() -> None:
    holes = MASK.clone()
    holes[1, 1] = 0
    assert rows(with_("attention_mask", holes)).digests[1] != rows(BATCH).digests[1]


def test_dtypes_and_names_matter() -> None:
    found = {
        one({"input_ids": IDS}),
        one({"input_ids": IDS.int()}),
        one({"input_ids": IDS, "token_type_ids": IDS}),
        one({"input_ids": IDS, "position_ids": IDS}),
        one({"input_ids": IDS, "flag": True}),
    }
    assert len(found) == 5


def test_a_row_that_all_rows_share() -> None:
    positions = torch.arange(4)[None]
    shared = rows(with_("position_ids", positions))
    assert shared.digests == rows(with_("position_ids", positions.expand(2, 4))).digests
    assert shared.digests != rows(with_("position_ids", positions + 1)).digests


def test_rows_without_a_real_token_are_kept_whole() -> None:
    empty = rows(with_("attention_mask", torch.zeros_like(MASK)))
    assert empty.kept == [None, None]
    assert empty.digests[0] != one({"input_ids": IDS})


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 1, 4, 4), torch.ones(2, 4) * 0.5, torch.full((2, 4), -1e4)]
)
def test_masks_of_other_kinds_are_content(mask: Tensor) -> None:
    found = rows(with_("attention_mask", mask))
    assert found.tokens is None and found.kept == [None, None]
    assert found.digests != rows(with_("attention_mask", mask + 1)).digests


@pytest.mark.parametrize(
    "further",
    [
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"use_cache": True},
        {"past_key_values": DynamicCache()},
        {"encoder_hidden_states": [torch.ones(2, 3)]},
        {"scale": torch.tensor(1.0)},
        {"other": torch.ones(3, 4)},
    ],
)
def test_calls_whose_rows_do_not_tell_all(further: dict[str, Any]) -> None:
    assert example_rows(BASE, {**BATCH, **further}) is None


def test_a_configuration_that_asks_for_all_hidden_states() -> None:
    base = tiny_bert().bert
    base.config.output_hidden_states = True
    assert example_rows(base, BATCH) is None


def test_embeddings_given_alone_are_not_examples() -> None:
    assert example_rows(BASE, {"inputs_embeds": torch.ones(2, 4, 32)}) is None


def test_arguments_by_name_and_by_position() -> None:
    names = argument_names(tiny_gpt2().transformer)
    assert named_inputs(names, (IDS,), {"attention_mask": MASK, "labels": None}).keys() == {
        "input_ids",
        "attention_mask",
    }


def test_some_rows() -> None:
    inputs = {**BATCH, "flag": True, "position_ids": torch.arange(4)[None]}
    some = chosen_rows(inputs, [1], 2)
    assert torch.equal(some["input_ids"], IDS[1:]) and some["flag"] is True
    assert some["position_ids"].shape == (1, 4)
    short = alone(inputs, 0, 2, rows(BATCH).kept[0])
    assert short["input_ids"].tolist() == [[5, 6, 7]] and short["position_ids"].shape == (1, 3)
