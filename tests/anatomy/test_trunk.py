"""The trunk: its blocks give way to their output, and nothing else changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from zoo import ZOO, build, inputs, output

from lightning_pelt.anatomy import examine
from lightning_pelt.anatomy.trunk import Trunk, moves_in_training
from lightning_pelt.testing import tiny_bert, tiny_gpt2, tiny_llama

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@contextmanager
def installed(model: Any, depth: int = 1) -> Iterator[Trunk]:
    trunk = Trunk(model, examine(model).stacks[0], depth)
    trunk.install()
    try:
        yield trunk
    finally:
        trunk.remove()


@contextmanager
def counted(module: nn.Module) -> Iterator[list[None]]:
    """The calls of a module."""
    calls: list[None] = []
    handle = module.register_forward_hook(lambda *_: calls.append(None))
    yield calls
    handle.remove()


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_output_stands_in_for_the_blocks(make: Any, depth: int) -> None:
    model = make()
    whole = output(model, {"input_ids": IDS})
    inner = examine(model).select("ffn")[0].path
    with installed(model, depth) as trunk:
        states = trunk.reach({"input_ids": IDS})
        with trunk.standing_in(states), counted(model.get_submodule(inner)) as calls:
            without = output(model, {"input_ids": IDS})
        assert not calls
        assert torch.equal(whole, without)
        assert torch.equal(whole, output(model, {"input_ids": IDS}))
    assert not any("forward" in vars(module) for module in model.modules())


def test_other_states_give_another_output() -> None:
    model = tiny_bert()
    with installed(model) as trunk, trunk.standing_in(torch.randn(2, 4, 32)):
        changed = output(model, {"input_ids": IDS})
    assert not torch.allclose(changed, output(model, {"input_ids": IDS}))


def test_states_are_those_that_transformers_returns() -> None:
    model = tiny_bert()
    with installed(model, 2) as trunk:
        reached = trunk.reach({"input_ids": IDS})
    assert torch.equal(reached, model(input_ids=IDS, output_hidden_states=True).hidden_states[2])


def test_upper_blocks_do_not_run_for_the_trunk() -> None:
    model = tiny_bert()
    with installed(model) as trunk, counted(model.bert.encoder.layer[1]) as calls:
        trunk.reach({"input_ids": IDS})
        assert not calls and not trunk.reaching


def test_an_error_in_a_forward_leaves_nothing_behind() -> None:
    model = tiny_bert()
    with installed(model) as trunk:
        with pytest.raises(IndexError):
            trunk.reach({"input_ids": IDS + 1000})
        assert not trunk.reaching


def test_copies_run_all_blocks() -> None:
    model = tiny_bert()
    whole = output(model, {"input_ids": IDS})
    with installed(model) as trunk, trunk.standing_in(torch.zeros(2, 4, 32)):
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for each in copies:
            assert torch.equal(output(each, {"input_ids": IDS}), whole)
            with torch.no_grad():
                each.bert.encoder.layer[0].output.dense.weight.zero_()  # of the copy
            assert not torch.allclose(output(each, {"input_ids": IDS}), whole)


def test_a_forward_that_a_block_has_itself_stays() -> None:
    model = tiny_bert()
    block = model.bert.encoder.layer[0]
    block.forward = mine = lambda hidden, *args, **kwargs: hidden + 1
    with installed(model) as trunk:
        embedded = model.bert.embeddings(IDS)
        assert torch.equal(trunk.reach({"input_ids": IDS}), embedded + 1)
    assert block.forward is mine


def test_parts_are_what_the_states_depend_on() -> None:
    model = tiny_bert()
    with installed(model) as trunk:
        parts = trunk.parts({"input_ids": IDS})
    tensors = set(map(id, parts.tensors.values()))
    embedded = set(map(id, model.bert.embeddings.parameters()))
    first, second = (set(map(id, block.parameters())) for block in model.bert.encoder.layer)
    assert embedded | first <= tensors
    assert not second & tensors and id(model.classifier.weight) not in tensors


def test_a_rotary_table_is_a_part() -> None:
    model = tiny_llama()
    with installed(model) as trunk:
        tensors = trunk.parts({"input_ids": IDS}).tensors.values()
    assert any(tensor is model.model.rotary_emb.inv_freq for tensor in tensors)


@pytest.mark.parametrize(
    ("module", "moves"),
    [
        (nn.Dropout(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.BatchNorm1d(3), True),
        (nn.LayerNorm(3), False),
    ],
)
def test_what_moves_in_training(module: nn.Module, moves: bool) -> None:
    assert moves_in_training(module) == moves


def test_rates_of_dropout_that_are_numbers() -> None:
    model = tiny_llama()
    attention = model.model.layers[0].self_attn
    assert not moves_in_training(attention)
    attention.attention_dropout = 0.1
    assert moves_in_training(attention)
    stack, router = nn.Module(), nn.Module()
    stack.layerdrop, router.jitter_noise = 0.1, 0.01
    assert moves_in_training(stack) and moves_in_training(router)


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize("name", [n for n, e in ZOO.items() if e.kind in ("encoder", "decoder")])
def test_families(name: str) -> None:
    if name == "albert":
        pytest.skip("its blocks share their weights")
    model, batch = build(name), inputs(name)
    whole = output(model, batch)
    with installed(model) as trunk, trunk.standing_in(trunk.reach(batch)):
        torch.testing.assert_close(output(model, batch), whole)
