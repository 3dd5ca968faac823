"""The structure of a model, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel
from zoo import ZOO, build

from lightning_pelt import LoRA, Plan, UniPELT, attach, detach
from lightning_pelt.anatomy import StandIns, discovery, examine
from lightning_pelt.anatomy.structure import KEPT, Remembered, functions_of, plain_data
from lightning_pelt.testing import tiny_bert


def structure(model: Any) -> Any:
    return StandIns(model).structure


@pytest.mark.parametrize("name", ZOO)
def test_two_builds_of_a_family_have_one_structure(name: str) -> None:
    assert structure(build(name)) is not None
    assert structure(build(name)) == structure(build(name))


def test_other_values_of_large_matrices_are_no_other_structure() -> None:
    config = BertConfig(num_hidden_layers=1, vocab_size=2000)
    assert structure(BertModel(config)) == structure(BertModel(config))


def _drop_a_bias(model: Any) -> None:
    model.bert.encoder.layer[0].output.dense.bias = None


def _change_a_value(model: Any) -> None:
    with torch.no_grad():
        model.bert.encoder.layer[0].output.LayerNorm.weight[3] = 0.0


def _tie(model: Any) -> None:
    first, second = model.bert.encoder.layer
    second.intermediate.dense.weight = first.intermediate.dense.weight


def _freeze(model: Any) -> None:
    model.bert.embeddings.requires_grad_(False)


def _replace_a_module(model: Any) -> None:
    class Other(nn.Linear):
        pass

    old = model.bert.encoder.layer[0].output.dense
    new = model.bert.encoder.layer[0].output.dense = Other(old.in_features, old.out_features)
    new.load_state_dict(old.state_dict())


def _configure(model: Any) -> None:
    model.config.is_decoder = True


def _set_an_attribute(model: Any) -> None:
    model.bert.encoder.layer[0].attention.self.scaling = 3.0


CHANGES = [
    *(_drop_a_bias, _change_a_value, _tie, _freeze),
    *(_replace_a_module, _configure, _set_an_attribute),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_difference_is_another_structure(change: Callable[[Any], None]) -> None:
    model = tiny_bert()
    change(model)
    assert structure(model) not in (None, structure(tiny_bert()))


def _hook(model: Any) -> None:
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: None)


def _own_forward(model: Any) -> None:
    layer = model.bert.encoder.layer[0]
    layer.forward = layer.forward  # a bound method


def _unknown(model: Any) -> None:
    model.bert.anything = object()


@pytest.mark.parametrize("change", [_hook, _own_forward, _unknown])
def test_what_cannot_be_compared_has_no_structure(change: Callable[[Any], None]) -> None:
    model = tiny_bert()
    change(model)
    assert structure(model) is None
    assert examine(model).model_type == "bert"


def test_replaced_functions_of_a_class_are_another_structure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = structure(tiny_bert())
    forward = BertModel.forward
    monkeypatch.setattr(BertModel, "forward", lambda *args, **options: forward(*args, **options))
    assert structure(tiny_bert()) != before


def test_an_equal_model_does_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    discovery.KNOWN.forget()
    expected = examine(tiny_bert())
    monkeypatch.setattr(discovery, "RecordedModel", None)
    assert examine(tiny_bert()) is expected
    with pytest.raises(TypeError, match="not callable"):
        examine(tiny_bert(), {"input_ids": torch.ones(1, 3, dtype=torch.long)})


def test_a_plan_that_ran_on_an_equal_model_is_not_tried_again() -> None:
    calls = []
    plan = Plan.uniform(LoRA(r=3, name="of_this_test"))
    for _ in range(2):
        model = tiny_bert()
        attach(model, plan)
        detach(model)
        forward = BertModel.forward

        def counted(*args: Any, _forward: Any = forward, **options: Any) -> Any:
            calls.append(1)
            return _forward(*args, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BertModel, "forward", counted)
            attach(model, plan)  # another structure: it is examined, and tried
        detach(model)
    assert len(calls) == 4


def test_the_same_weights_are_drawn_the_second_time() -> None:
    first, second = tiny_bert(), tiny_bert()
    states = []
    for model in (first, second):
        attach(model, UniPELT(), seed=3)
        states.append(model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_data_of_plans_are_compared_by_value_and_class() -> None:
    assert plain_data([LoRA(r=2)]) == plain_data([LoRA(r=2)])
    assert plain_data([LoRA(r=2)]) != plain_data([LoRA(r=3)])
    assert plain_data([1]) != plain_data([1.0])
    assert plain_data([object()]) is None
    assert functions_of([LoRA]) == functions_of([LoRA]) != functions_of([UniPELT])


def test_the_oldest_structures_are_forgotten() -> None:
    known: Remembered[int] = Remembered()
    for number in range(KEPT + 1):
        known.put(number, number)
    assert known.get(0) is None
    assert known.get(KEPT) == KEPT


def test_a_model_is_examined_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []
    forward = BertModel.forward

    def counted(*args: Any, **options: Any) -> Any:
        seen.append(torch.get_num_threads())
        return forward(*args, **options)

    monkeypatch.setattr(BertModel, "forward", counted)
    torch.set_num_threads(2)
    try:
        attach(tiny_bert(), Plan.uniform(LoRA()))
        assert seen == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
