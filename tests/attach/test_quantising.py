"""Quantised bases: what is quantised, and plans on them against ordinary dequantised layers."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from quantised import KINDS, dense, layers, needs, quantised, run
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from zoo import build, inputs, output

from lightning_pelt import (
    IA3,
    XPEFT,
    Adapter,
    BitFit,
    Compacter,
    FullFineTuning,
    Gate,
    LoRA,
    Plan,
    Prefix,
    RandomBank,
    UniPELT,
    attach,
    detach,
    load_adapters,
    merge,
    quantise,
    save_adapters,
)
from lightning_pelt.anatomy import examine
from lightning_pelt.attach import quantising
from lightning_pelt.testing import awaken, tiny_bert, tiny_gpt2, tiny_llama
from lightning_pelt.utils.quantised import count, dense_bytes, kind_of, stored_bytes

APL = UniPELT(methods=(LoRA(r=2), Prefix(length=3), Adapter(reduction_factor=8)))
COMPACTER = Plan.uniform(Compacter(n=2, reduction_factor=8, gate=Gate()))
PLANS = {
    "unipelt": APL,
    "compacter": COMPACTER,
    "xpeft": Plan.uniform(XPEFT(bank=RandomBank(size=4), k=2, bottleneck=4, gate=Gate())),
    "bitfit": Plan.uniform(BitFit(), IA3(), norms=True),
}


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    model.zero_grad()
    tokens = torch.arange(3, 15).view(2, 6)
    out = model(input_ids=tokens)[0]
    (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def both(kind: str, plan: Plan, build: Any = tiny_bert) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A quantised model with a plan, and the same with ordinary layers of the same values."""
    one = quantised(build(), kind)
    other = dense(deepcopy(one))
    for model in (one, other):
        awaken(attach(model, plan, seed=3))
        model.eval()
    return one, other


@pytest.mark.parametrize("kind", KINDS)
def test_the_linear_layers_of_the_blocks_and_nothing_else(kind):
    model, before = quantised(tiny_bert(), kind), tiny_bert()
    expected = [
        path
        for path, module in before.named_modules()
        if isinstance(module, nn.Linear) and ".layer." in path
    ]
    assert layers(model) == expected
    for name, tensor in before.named_parameters():
        if name.rpartition(".")[0] not in expected or name.endswith("bias"):
            assert torch.equal(model.get_parameter(name), tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_the_anatomy_is_that_of_the_full_model(kind):
    assert examine(quantised(tiny_llama(), kind)) == examine(tiny_llama())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.slow
def test_outputs_and_gradients_are_those_of_dequantised_layers(plan, kind):
    one, other = both(kind, PLANS[plan])
    torch.testing.assert_close(run(one), run(other), rtol=1e-4, atol=1e-5)
    ours, theirs = gradients(one), gradients(other)
    assert ours.keys() == theirs.keys() and ours
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-3, atol=1e-5)


def test_int8_lora_in_short():
    one, other = both("int8", Plan.uniform(LoRA(r=2, gate=Gate())))
    ours, theirs = gradients(one), gradients(other)
    assert ours.keys() == theirs.keys() and ours
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-3, atol=1e-5)


def test_int8_is_rounding_to_127_steps_of_each_channel():
    """The formula, with at most half a step of error."""
    full, model = tiny_bert(), quantised(tiny_bert(), "int8")
    path = layers(model)[0]
    weight = full.get_submodule(path).weight
    step = weight.abs().amax(1, keepdim=True) / 127
    error = (dense(model).get_submodule(path).weight - weight).abs()
    assert (error <= 0.51 * step).all() and error.max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_merging_gives_the_outputs_and_ordinary_layers(kind, tmp_path):
    model = quantised(tiny_bert(), kind)
    plan = Plan.uniform(LoRA(r=2, sites=("query", "ffn.out")), IA3(), BitFit(), norms=True)
    awaken(attach(model, plan))
    before = run(model)
    assert merge(model) is model
    assert layers(model) == []
    torch.testing.assert_close(run(model), before, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(run(again), before, rtol=1e-5, atol=1e-5)


def test_a_gated_method_is_still_refused_by_merge():
    model = quantised(tiny_bert(), "int8")
    awaken(attach(model, APL))
    before = run(model)
    with pytest.raises(ValueError, match="is gated"):
        merge(model)
    assert torch.equal(run(model), before) and layers(model)


@pytest.mark.parametrize("kind", KINDS)
def test_detach_and_copies_leave_the_quantised_model(kind):
    model = quantised(tiny_bert(), kind)
    before = run(model)
    awaken(attach(model, APL))
    copy = deepcopy(model)
    assert torch.equal(run(copy), run(model))
    detach(model)
    assert torch.equal(run(model), before)
    attach(model, COMPACTER)  # a second plan after the first


def test_activation_checkpointing_gives_the_same_gradients():
    one, _ = both("int8", APL)
    plain = gradients(one.train())
    one.gradient_checkpointing_enable()
    for name, grad in gradients(one.train()).items():
        torch.testing.assert_close(grad, plain[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_to_bf16_is_near(kind):
    one, _ = both(kind, APL)
    whole = run(one)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(run(one), whole, rtol=0.1, atol=0.1)
        assert all(grad.isfinite().all() for grad in gradients(one).values())


@pytest.mark.parametrize("kind", KINDS)
def test_bases_in_bf16(kind):
    model = quantised(tiny_llama().to(torch.bfloat16), kind)
    awaken(attach(model, APL))
    assert model(input_ids=torch.arange(3, 9)[None]).logits.dtype == torch.bfloat16
    assert all(grad.isfinite().all() for grad in gradients(model).values())


@pytest.mark.nightly
def test_compiled():
    one, _ = both("int8", Plan.uniform(LoRA(r=2)))
    compiled: Any = torch.compile(one)
    torch.testing.assert_close(run(compiled), run(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_files_say_how_the_base_was_quantised(kind, tmp_path, recwarn):
    model = quantised(tiny_bert(), kind)
    awaken(attach(model, APL))
    save_adapters(model, tmp_path)
    again = quantised(tiny_bert(), kind)
    load_adapters(again, tmp_path, strict=True)
    assert torch.equal(run(again), run(model))
    with pytest.raises(ValueError, match=rf"{kind} \(.*\) there, not quantised here"):
        load_adapters(tiny_bert(), tmp_path, strict=True)
    with pytest.warns(UserWarning, match="not quantised here"):
        load_adapters(tiny_bert(), tmp_path)


def test_state_dicts_too():
    model, full = quantised(tiny_bert(), "int8"), tiny_bert()
    awaken(attach(model, APL))
    attach(full, APL)
    state = model.state_dict()
    assert not any(name.endswith("query.weight") for name in state)
    with pytest.warns(UserWarning, match=r"int8 \(torchao\) there, not quantised here"):
        full.load_state_dict(state)


def test_bytes_and_numbers():
    needs("int8")
    linear = nn.Linear(64, 32)
    int8 = quantising._int8(deepcopy(linear)).weight
    assert (count(int8), dense_bytes(int8)) == (2048, 8192)
    assert 2048 + 32 * 4 <= stored_bytes(int8) <= 2048 + 32 * 8 + 64  # with scales and zeros
    assert kind_of(int8) == "int8 (torchao)"


def test_bytes_and_numbers_of_four_bits():
    needs("nf4")
    nf4 = quantising._nf4(nn.Linear(64, 32)).weight
    assert nf4.numel() == 1024
    assert (count(nf4), dense_bytes(nf4)) == (2048, 8192)
    assert 1024 + 32 <= stored_bytes(nf4) <= 1024 + 32 + 4 * (16 + 256 + 2)
    assert kind_of(nf4) == "nf4 (bitsandbytes)"


def test_what_is_trained_must_not_be_quantised():
    model = quantised(tiny_bert(), "int8")
    with pytest.raises(ValueError, match="FullFineTuning trains the whole base"):
        attach(model, FullFineTuning())
    with pytest.raises(ValueError, match=r"is quantised, int8 \(torchao\), and cannot be trained"):
        attach(model, APL, head=["bert.encoder.layer.0.output.dense"])
    assert attach(model, APL)  # is as it was


def test_order_and_second_times_are_refused_by_name():
    model = quantised(tiny_bert(), "int8")
    with pytest.raises(ValueError, match=r"quantised already \(int8 \(torchao\)\)"):
        quantise(model, "int8")
    full = tiny_bert()
    attach(full, APL)
    with pytest.raises(ValueError, match="quantise the model before attach"):
        quantise(full, "int8")
    with pytest.raises(ValueError, match="unknown quantisation 'int9': did you mean 'int8'"):
        quantise(tiny_bert(), "int9")  # type: ignore[arg-type]
    with torch.device("meta"):
        empty = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, hidden_size=64, vocab_size=9))
    with pytest.raises(ValueError, match="load its weights before"):
        quantise(empty, "int8")
    with pytest.raises(ValueError, match="Conv1D"):
        quantise(tiny_gpt2(), "int8")


def test_a_missing_library_names_the_extra(monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(quantising, "import_module", missing)
    with pytest.raises(ImportError, match=r"needs torchao: pip install .*\[quantise\]"):
        quantise(tiny_bert(), "int8")


def test_a_missing_kernel_names_the_device_and_changes_nothing(monkeypatch):
    needs("fp8")

    def fails(linear: nn.Linear) -> nn.Module:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(quantising, "_fp8", fails)
    model = tiny_bert()
    with pytest.raises(ValueError, match=r"'fp8' does not run on cpu.*query fails.*no kernel"):
        quantise(model, "fp8")
    assert layers(model) == []


def test_t5_keeps_the_layers_whose_dtype_it_reads():
    """It casts the input of ``wo`` to the dtype of its weight, which is packed in 4 bits."""
    model = quantised(build("t5"), "nf4")
    found = layers(model)
    assert found and not [path for path in found if path.endswith(".wo")]
    awaken(attach(model, Plan.uniform(LoRA(r=2, gate=Gate()))))
    with torch.no_grad():
        assert output(model, inputs("t5")).isfinite().all()


def test_evaluation_does_not_repack_layers_of_bitsandbytes():
    """On CPUs with AVX512-BF16 it would, and round the scales; also those that others have made."""
    model = quantised(tiny_bert(), "nf4")
    for path in layers(model):  # as transformers loads them
        model.get_submodule(path).support_avx512bf16_for_cpu = True
    weight = model.get_submodule(layers(model)[0]).weight
    before = weight.detach().clone()
    attach(model, Plan.uniform(LoRA(r=2)))
    run(model)
    assert torch.equal(weight, before) and weight.quant_state.nested


@pytest.mark.slow
def test_transformers_own_configuration_of_torchao(tmp_path):
    needs("int8")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    tiny_llama().save_pretrained(tmp_path / "base")
    load = {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig()), "dtype": torch.float32}
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base", **load)
    assert layers(model)
    awaken(attach(model, Plan.uniform(LoRA(r=2, sites=("query", "ffn.out")))))
    before = run(model)
    assert all(grad.isfinite().all() for grad in gradients(model).values())
    merge(model).save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(run(model), before, rtol=1e-5, atol=1e-5)
    again = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(again.config, "quantization_config")
    torch.testing.assert_close(run(again), before, rtol=1e-5, atol=1e-5)
