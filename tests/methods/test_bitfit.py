"""BitFit against the same change made to the base's own biases."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import build, inputs, output

from lightning_pelt import BitFit, Gate, Group, Plan, attach
from lightning_pelt.attach import Attachment
from lightning_pelt.testing import MethodConformance, awaken, tiny_bert, tiny_llama


class TestBitFit(MethodConformance):
    method = BitFit()


@pytest.mark.slow  # gated outputs: TestGatedIA3
class TestGatedBitFit(MethodConformance):
    compiled = ("bert",)
    method = BitFit(gate=Gate())


def tuned(model: nn.Module, method: BitFit) -> Attachment:
    attachment = attach(model, Plan.uniform(method))
    awaken(attachment)
    return attachment


WITH_BIASES = ["bert", "electra", "distilbert", "deberta-v2", "gpt2", "opt", "bart", "dinov2"]


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_BIASES)
def test_is_a_change_of_the_biases(name: str) -> None:
    model, batch = build(name), inputs(name)
    changed = copy.deepcopy(model)
    attachment = tuned(model, BitFit())
    for module in attachment.submodules["bitfit"]:
        bias = changed.get_submodule(module.site.path).bias
        rows = module.output_rows.rows
        bias[slice(None) if rows is None else rows] += module.bias
    torch.testing.assert_close(output(model, batch), output(changed, batch), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["bert", "electra", "distilbert", "gpt2", "opt", "bart", "bloom"])
def test_covers_every_bias_of_the_base(name: str) -> None:
    model = build(name)
    biases = [p for n, p in model.base_model.named_parameters() if n.endswith("bias")]
    attachment = tuned(model, BitFit())
    assert attachment.counts["bitfit"].trained == sum(bias.numel() for bias in biases)


@torch.no_grad()
def test_layers_without_biases_get_them() -> None:
    model: Any = tiny_llama()
    changed = copy.deepcopy(model)
    attachment = tuned(model, BitFit(sites=("*attention.*", "ffn.*")))
    assert len(attachment.submodules["bitfit"]) == 2 * 7
    for module in attachment.submodules["bitfit"]:
        linear: Any = changed.get_submodule(module.site.path)
        assert linear.bias is None
        linear.bias = nn.Parameter(module.bias.clone())
    tokens = torch.arange(3, 11)[None]
    expected = changed(input_ids=tokens).logits
    torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_starts_at_the_base() -> None:
    model, tokens = tiny_llama(), torch.arange(3, 11)[None]
    base = model(input_ids=tokens).logits
    attach(model, Plan.uniform(BitFit()))
    assert torch.equal(model(input_ids=tokens).logits, base)


@torch.no_grad()
def test_gate_scales_the_bias() -> None:
    """A gate that averages in a projection, and one per token on the norm behind it."""
    model: Any = tiny_bert()
    block = copy.deepcopy(model.bert.encoder.layer[0].attention)
    attachment = tuned(model, BitFit(gate=Gate()))
    biases = {module.site.path: module.bias for module in attachment.submodules["bitfit"]}
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    attention = model.bert.encoder.layer[0].attention
    for module in (attention.self.key, attention.output.LayerNorm):
        module.register_forward_hook(lambda m, args, output: seen.update({m: (args[0], output)}))
    model(input_ids=torch.arange(3, 11)[None])

    x, y = seen[attention.self.key]
    weight, bias = attachment.gates["00/bitfit.key"].parameters()
    gate = torch.sigmoid(x @ weight[0] + bias).mean()
    path = "bert.encoder.layer.0.attention"
    torch.testing.assert_close(y, block.self.key(x) + gate * biases[f"{path}.self.key"])

    x, y = seen[attention.output.LayerNorm]
    weight, bias = attachment.gates["00/bitfit.norm"].parameters()
    per_token = torch.sigmoid(x @ weight.T + bias)
    expected = block.output.LayerNorm(x) + per_token * biases[f"{path}.output.LayerNorm"]
    torch.testing.assert_close(y, expected)


def test_sites_outside_the_blocks_need_all_blocks() -> None:
    """Embedding norm and pooler belong to no block: a group of some blocks leaves them alone."""
    whole = attach(tiny_bert(), Plan.uniform(BitFit()))
    part = attach(tiny_bert(), Plan([Group([BitFit()], blocks=[0, 1])]))
    outer = {m.site.path for m in whole.submodules["bitfit"]} - {
        m.site.path for m in part.submodules["bitfit"]
    }
    assert outer == {"bert.embeddings.LayerNorm", "bert.pooler.dense"}


def test_unknown_site() -> None:
    with pytest.raises(ValueError, match="'nrom': did you mean 'norm'"):
        attach(tiny_bert(), Plan.uniform(BitFit(sites=("nrom",))))
