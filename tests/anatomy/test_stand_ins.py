"""A model on the meta device has the anatomy that it has with weights."""

from __future__ import annotations

import copy
import resource
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    ImageGPTConfig,
    ImageGPTModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    XLNetConfig,
    XLNetModel,
)
from zoo import ZOO, build, inputs, without_values

from lightning_pelt.anatomy import StandIns, examine, is_without_values
from lightning_pelt.testing import tiny_bert, tiny_llama


def seven_billion() -> PreTrainedModel:
    """Llama 2 7B."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.parametrize("name", ZOO)
def test_the_anatomy_is_that_of_the_model_with_weights(name: str) -> None:
    assert examine(without_values(name)) == examine(build(name))


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (XLNetModel, XLNetConfig(d_model=32, n_layer=1, n_head=2, d_inner=32, vocab_size=50)),
        (ImageGPTModel, ImageGPTConfig(n_embd=32, n_layer=1, n_head=2, n_positions=16)),
    ],
    ids=["xlnet", "imagegpt"],
)
def test_parameters_that_escape_the_meta_device_count_as_empty(cls: Any, config: Any) -> None:
    """torch.Tensor(size) and torch.FloatTensor(size) are on the CPU, and hold anything."""
    with torch.device("meta"):
        model = cls(config)
    escaped = [p for p in model.parameters() if not p.is_meta]
    assert escaped
    for parameter in escaped:
        nn.init.constant_(parameter, torch.nan)
    assert examine(model) == examine(cls(config))
    assert all(parameter.isnan().all() for parameter in escaped)


def test_example_inputs_serve_too() -> None:
    given = inputs("llama")
    assert examine(without_values("llama"), given) == examine(build("llama"), given)


def test_the_model_keeps_its_tensors() -> None:
    model = without_values("t5")  # whose embeddings are tied
    before = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    examine(model)
    after = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    assert before.keys() == after.keys()
    assert all(after[name] is tensor for name, tensor in before.items())


def test_the_model_has_its_tensors_again_after_an_error() -> None:
    model = without_values("bert")
    before = list(model.parameters())
    with pytest.raises(KeyError), StandIns(model):
        raise KeyError
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


def test_it_has_them_while_suspended() -> None:
    model = without_values("bert")
    with StandIns(model) as stand_ins:
        assert model.device.type == "cpu"
        with stand_ins.suspended():
            assert {p.device.type for p in model.parameters()} == {"meta"}
        assert model.device.type == "cpu"


def test_a_model_with_values_computes_with_them() -> None:
    model, given = tiny_bert(), torch.ones(1, 3, dtype=torch.long)
    with torch.no_grad():
        expected = model(given).logits
        with StandIns(model):
            assert torch.equal(model(given).logits, expected)


@pytest.mark.parametrize("name", ZOO)
def test_stand_ins_of_loaded_matrices_do_not_change_the_anatomy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = examine(build(name))
    monkeypatch.setitem(StandIns.__init__.__kwdefaults__, "large", 1)
    assert examine(build(name)) == expected


def test_the_matrices_of_a_large_loaded_model_are_replaced_for_a_while() -> None:
    model = tiny_bert()
    before = list(model.parameters())
    with StandIns(model, large=1024):
        inside = list(model.parameters())
    for parameter, other in zip(before, inside, strict=True):
        assert (other is parameter) == (parameter.dim() < 2)
        assert other.shape == parameter.shape
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


def test_parameters_of_other_kinds_stay() -> None:
    """Such as quantised ones, which kernels read."""
    model = tiny_bert()
    layer = model.bert.encoder.layer[0].intermediate.dense
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    layer.bias = nn.Parameter(layer.bias.detach().as_subclass(_Other), requires_grad=False)
    before = list(model.parameters())
    with StandIns(model, large=1):
        assert all(a is b for a, b in zip(model.parameters(), before, strict=True))


class _Other(torch.Tensor):
    """A tensor of another library."""


def test_buffers_and_norms_are_those_that_the_model_starts_with() -> None:
    """Rotary frequencies decide nothing here, but a mask among the buffers would."""
    with torch.device("meta"):
        model = tiny_llama().to("meta")
    real = dict(tiny_llama().named_buffers())
    with StandIns(model):
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, real[name])


def test_products_are_deterministic_and_differ_between_layers() -> None:
    model = without_values("llama")
    layer = model.model.layers[0]
    x = torch.randn(3, 32)
    with torch.no_grad(), StandIns(model):
        first, second = (layer.mlp.gate_proj(x) for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.allclose(first, layer.mlp.up_proj(x))
        assert 0.1 < first.std() < 10
        weight = layer.mlp.gate_proj.weight
        assert torch.equal(layer.mlp.gate_proj(x), x @ weight.T)


def test_a_model_whose_weights_are_fetched_in_the_forward_is_left_alone() -> None:
    model = without_values("bert")
    model.bert.encoder.layer[0]._hf_hook = object()  # of accelerate
    assert not is_without_values(model)
    assert is_without_values(copy.deepcopy(without_values("bert")))


@pytest.mark.slow
def test_seven_billion_parameters_take_little_memory() -> None:
    model = seven_billion()
    examine(tiny_llama())  # what is allocated once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    anatomy = examine(model)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 512  # MiB; the model has 25,700
    assert len(anatomy.select("query")) == 32
    assert anatomy.parameters == sum(p.numel() for p in model.parameters())
