"""Models that transformers has quantised: dequantised where that is exact, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from lightning_pelt import IA3, BitFit, LoRA, Plan, attach, merge
from lightning_pelt.attach import find_attachment
from lightning_pelt.testing import awaken, draw, tiny_bert

TOKENS = torch.arange(3, 11)[None]


@torch.no_grad()
def run(model: PreTrainedModel) -> Tensor:
    return model(input_ids=TOKENS).logits.float()


class Eight(nn.Module):
    """A layer with a weight of eight bits.

    Args:
        inputs: whether it rounds its inputs to eight bits too, as LLM.int8() does.
    """

    def __init__(self, linear: nn.Linear, inputs: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.step = float(linear.weight.detach().abs().max()) / 127
        whole = (linear.weight.detach() / self.step).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.bias, self.inputs = linear.bias, inputs

    def dequantised(self) -> Tensor:
        return self.weight.float() * self.step

    def forward(self, x: Tensor) -> Tensor:
        if self.inputs:
            step = x.abs().amax(-1, keepdim=True).clamp(min=1e-9) / 127
            x = (x / step).round() * step
        return F.linear(x, self.dequantised(), self.bias)


class Quantizer(HfQuantizer):
    """What transformers keeps of a quantised model."""

    def __init__(self) -> None:
        pass

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        for path, layer in list(model.named_modules()):
            if isinstance(layer, Eight):
                linear = nn.Linear(layer.in_features, layer.out_features)
                linear.weight.data = layer.dequantised()
                linear.bias = layer.bias
                model.set_submodule(path, linear)
        return model

    is_trainable = True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        return model

    def is_serializable(self, **kwargs: Any) -> bool:
        return True


def quantised(*, inputs: bool = False) -> PreTrainedModel:
    model: Any = tiny_bert()
    for path, layer in list(model.bert.encoder.named_modules()):
        if isinstance(layer, nn.Linear):
            model.bert.encoder.set_submodule(path, Eight(layer, inputs))
    model.hf_quantizer, model.is_quantized = Quantizer(), True
    model.config.quantization_config = {"quant_method": "eight"}
    model.config.dtype = torch.float32
    return model


def test_a_quantised_model_is_dequantised_and_loads(tmp_path):
    """Those layers too that no method extends; the configuration names no quantisation."""
    model: Any = quantised()
    sites = ("query", "ffn.out")
    awaken(attach(model, Plan.uniform(LoRA(r=2, sites=sites), IA3(), BitFit(), norms=True)))
    before = run(model)
    assert merge(model) is model
    assert find_attachment(model) is None
    kinds = {type(m) for m in model.bert.encoder.modules() if hasattr(m, "in_features")}
    assert kinds == {nn.Linear}
    assert not hasattr(model.config, "quantization_config")
    torch.testing.assert_close(run(model), before, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert set(again.state_dict()) == set(tiny_bert().state_dict())
    torch.testing.assert_close(run(again), before, rtol=1e-5, atol=1e-5)


def assert_refused(model: PreTrainedModel, message: str) -> None:
    before = run(model)
    with pytest.raises(ValueError, match=message):
        merge(model)
    assert torch.equal(run(model), before)
    assert find_attachment(model) is not None


def test_layers_that_round_their_inputs_are_refused():
    """No weight gives their outputs."""
    model = quantised(inputs=True)
    awaken(attach(model, Plan.uniform(LoRA(r=2))))
    assert_refused(
        model, r"query \(Eight\) quantises its inputs too.*load the base again, call its"
    )


def test_what_transformers_cannot_dequantise_is_refused():
    model: Any = quantised()
    model.hf_quantizer = None
    awaken(attach(model, Plan.uniform(LoRA(r=2))))
    assert_refused(model, r"query is quantised.*int8 on cpu.*by its dequantize\(\)\), then load_a")


def test_biases_of_quantised_layers_are_merged_without_dequantising():
    model: Any = quantised()
    awaken(attach(model, Plan.uniform(BitFit(), norms=False)))
    before = run(model)
    merge(model)
    assert isinstance(model.bert.encoder.layer[0].attention.self.query, Eight)
    torch.testing.assert_close(run(model), before, rtol=1e-5, atol=1e-5)


def test_a_missing_bias_of_a_quantised_layer_is_refused():
    model: Any = quantised()
    model.bert.encoder.layer[1].attention.self.value.bias = None
    awaken(attach(model, Plan.uniform(LoRA(r=2), BitFit(sites=["value"]), norms=False)))
    assert_refused(model, r"value \(Eight\) has no bias")


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=100, num_hidden_layers=2, num_key_value_heads=2, **sizes)
    draw(LlamaForCausalLM(config)).save_pretrained(tmp_path / "base")
    how = {4: {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}}
    model: Any = LlamaForCausalLM.from_pretrained(
        tmp_path / "base",
        quantization_config=BitsAndBytesConfig(**how.get(bits, {"load_in_8bit": True})),
        device_map="cpu",
        dtype=torch.float32,
    )
    awaken(attach(model, Plan.uniform(LoRA(r=2, sites=("query", "ffn.out")), IA3())))
    if bits == 8:
        assert_refused(model, r"\(Linear8bitLt\) quantises its inputs too")
        return
    before = run(model)
    merge(model).save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(run(model), before, rtol=1e-5, atol=1e-5)
    again = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(again.config, "quantization_config")
    torch.testing.assert_close(run(again), before, rtol=1e-5, atol=1e-5)
