"""BitFit against the same change made to the base's own biases."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from families.family import Family
from torch import Tensor, nn
from transformers import BertForMaskedLM
from zoo import ZOO, build, inputs, output

from lightning_pelt import IA3, BitFit, Gate, Group, LoRA, Plan, attach
from lightning_pelt.attach import Attachment
from lightning_pelt.methods.base import Method
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


MOONSHINE = {
    f"{stack}_num_{heads}": 4
    for stack in ("encoder", "decoder")
    for heads in ("attention_heads", "key_value_heads")
}
SAM = {
    "vision_config": {
        **{"image_size": 32, "patch_size": 4, "window_size": 3, "global_attn_indexes": [1]},
        **{"output_channels": 32, "num_pos_feats": 16},
    },
    "prompt_encoder_config": {
        **{"image_size": 32, "patch_size": 4, "image_embedding_size": 8, "hidden_size": 32}
    },
    "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "attention_downsample_rate": 2},
}


def moonshine() -> tuple[Any, dict[str, Tensor]]:
    """A group norm over (B, C, T), here with as many frames as channels."""
    model = Family("moonshine", "UsefulSensors/moonshine-tiny", options=MOONSHINE).build()
    batch = {"input_values": torch.randn(2, 127 + 31 * 64), "decoder_input_ids": torch.ones(2, 3)}
    return model, {**batch, "decoder_input_ids": batch["decoder_input_ids"].long()}


def sam() -> tuple[Any, dict[str, Tensor]]:
    """Norms over (B, C, H, W) behind its encoder."""
    model = Family("sam", "facebook/sam-vit-base", options=SAM).build()
    points = torch.tensor([[[[3.0, 5.0]]], [[[9.0, 1.0]]]])
    return model, {"pixel_values": torch.randn(2, 3, 32, 32), "input_points": points}


@torch.no_grad()
@pytest.mark.parametrize("make", [moonshine, sam])
@pytest.mark.slow
def test_norms_with_channels_first(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, batch = make()
    changed, base = copy.deepcopy(model), model(**batch)[0]
    attachment = tuned(model, BitFit(sites=("norm",)))
    first = []
    for module in attachment.submodules["bitfit"]:
        norm = changed.get_submodule(module.site.path)
        if norm.bias is None:
            norm.bias = nn.Parameter(torch.zeros_like(module.bias))
        norm.bias += module.bias
        first += [] if module.channels_last else [module.site.path]
    expected, found = changed(**batch)[0], model(**batch)[0]
    assert (found - base).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    attachment.detach()

    with caplog.at_level(logging.WARNING, "lightning_pelt"):
        gated = attach(model, Plan.uniform(BitFit(sites=("norm",), gate=Gate())))
    assert caplog.records[0].message.startswith(f"bitfit: no bias in {', '.join(first)} of ")
    assert not {module.site.path for module in gated.submodules["bitfit"]} & set(first)


@torch.no_grad()
@pytest.mark.parametrize("method", [BitFit(), LoRA(), IA3()], ids=lambda method: method.name)
def test_layers_that_return_a_scaling_factor(method: Method) -> None:
    """Those of I-BERT return None for it in floating point; in integers an update is refused."""
    model = Family("ibert", "kssteven/ibert-roberta-base").build()
    tokens = torch.arange(3, 19).view(2, 8)
    changed, base = copy.deepcopy(model), model(input_ids=tokens)[0]
    attachment = attach(model, Plan.uniform(method))
    awaken(attachment)
    found = model(input_ids=tokens)[0]
    assert (found - base).abs().max() > 1e-2
    if isinstance(method, BitFit):
        for module in attachment.submodules["bitfit"]:
            changed.get_submodule(module.site.path).bias += module.bias
        torch.testing.assert_close(found, changed(input_ids=tokens)[0], rtol=0, atol=2e-5)
    for layer in model.modules():
        if hasattr(layer, "quant_mode"):
            layer.quant_mode = True
    with pytest.raises(ValueError, match=r"computes in integers.*quant_mode=False"):
        model(input_ids=tokens)


def test_the_head_of_a_language_model_keeps_its_biases() -> None:
    model = BertForMaskedLM(ZOO["bert"].config())
    kept = {n: p.clone() for n, p in model.cls.named_parameters() if n.endswith("bias")}
    attachment = tuned(model, BitFit())
    assert len(kept) == 3
    assert not any(m.site.path.startswith("cls.") for m in attachment.submodules["bitfit"])
    found = dict(model.cls.named_parameters())
    assert all(torch.equal(found[n], kept[n]) and not found[n].requires_grad for n in kept)


def test_unknown_site() -> None:
    with pytest.raises(ValueError, match="'nrom': did you mean 'norm'"):
        attach(tiny_bert(), Plan.uniform(BitFit(sites=("nrom",))))
