"""The prefix's parameters: one MLP a stack, in the authors' order, or none. What they do in the
attention is in test_attention."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM
from zoo import ZOO, build, inputs, output

from lightning_pelt import Gate, Plan, Prefix, attach
from lightning_pelt.attach import Attachment
from lightning_pelt.methods.prefix import PrefixEncoder, PrefixKV
from lightning_pelt.testing import MethodConformance, awaken, tiny_bert, tiny_llama

TOKENS = torch.arange(3, 19).view(2, 8)


class TestPrefix(MethodConformance):
    method = Prefix(length=3)


class TestGatedPrefix(MethodConformance):
    method = Prefix(length=3, mlp=16, gate=Gate())


@pytest.mark.slow  # prefixes: TestPrefix
class TestFlatPrefix(MethodConformance):
    compiled = ("bert",)
    method = Prefix(length=3, mlp=None)


def prefixed(model: nn.Module, method: Prefix) -> Attachment:
    attachment = attach(model, Plan.uniform(method))
    awaken(attachment)
    return attachment


def encoders(attachment: Attachment) -> dict[str, Any]:
    """The shared MLPs by the name under which the model holds them."""
    names = {module: name for name, module in attachment.model.named_modules()}
    modules = attachment.submodules["prefix"]
    return {names[module]: module for module in modules if isinstance(module, PrefixEncoder)}


def by_hand(encoder: Any) -> Tensor:
    """W2 tanh(W1 E + b1) + b2."""
    hidden = torch.tanh(encoder.table @ encoder.up.weight.T + encoder.up.bias)
    return hidden @ encoder.out.weight.T + encoder.out.bias


@torch.no_grad()
@pytest.mark.parametrize(("make", "width"), [(tiny_bert, 32), (tiny_llama, 16)])
def test_mlp_in_the_authors_order(make: Any, width: int) -> None:
    """Block i has columns 2i (keys) and 2i + 1 (values); Llama's two key heads are half as wide."""
    model = make()
    attachment = prefixed(model, Prefix(length=3, mlp=16))
    ((name, encoder),) = encoders(attachment).items()
    assert name in (
        "bert.encoder.pelt.prefix_encoder_attention",
        "model.pelt.prefix_decoder_attention",
    )
    whole = by_hand(encoder)
    assert whole.shape == (3, 4 * width)

    flat = make()
    columns = iter(whole.split(width, dim=1))
    pieces = attach(flat, Plan.uniform(Prefix(length=3, mlp=None))).submodules["prefix"]
    assert len(pieces) == 2
    for piece in pieces:
        piece.key.copy_(next(columns))
        piece.value.copy_(next(columns))
    expected = flat(input_ids=TOKENS).logits
    torch.testing.assert_close(model(input_ids=TOKENS).logits, expected, rtol=0, atol=1e-6)


def test_encoder_decoder_has_three_tables() -> None:
    """Encoder, decoder and cross-attention each have a table and an MLP, as in adapter-hub."""
    attachment = prefixed(build("bart"), Prefix(length=3, mlp=16))
    assert {name.rpartition(".")[2] for name in encoders(attachment)} == {
        "prefix_encoder_attention",
        "prefix_decoder_attention",
        "prefix_decoder_cross_attention",
    }


@pytest.mark.parametrize(("sites", "pieces"), [("attention", 4), ("cross_attention", 2)])
def test_sites(sites: str, pieces: int) -> None:
    attachment = prefixed(build("bart"), Prefix(length=3, mlp=None, sites=(sites,)))
    hosts = [module.site.path for module in attachment.submodules["prefix"]]
    assert len(hosts) == pieces
    assert all(("encoder_attn" in host) == (sites == "cross_attention") for host in hosts)


def test_mlp_runs_once_per_forward() -> None:
    model = tiny_bert()
    (encoder,) = encoders(prefixed(model, Prefix(length=3))).values()
    runs: list[int] = []
    encoder.register_forward_hook(lambda *_: runs.append(1))
    model(input_ids=TOKENS)
    assert len(runs) == 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "llama", "t5", "deepseek_v3"])
def test_folded(name: str) -> None:
    """Without its MLP, and with the keys and values that the MLP gave, a prefix does the same."""
    model, batch = build(name), inputs(name)
    method = Prefix(length=3, mlp=16, gate=Gate())
    attachment = prefixed(model, method)
    expected = output(model, batch)

    other = build(name)
    folded = attach(other, Plan.uniform(method.folded()))
    pairs = [m for m in attachment.submodules["prefix"] if isinstance(m, PrefixKV)]
    for ours, theirs in zip(pairs, folded.submodules["prefix"], strict=True):
        state = ours.folded_state()
        assert state is not None
        theirs.load_state_dict(state)
    gates = {name: view.parameters() for name, view in attachment.gates.items()}
    for gate, view in folded.gates.items():
        for ours, theirs in zip(gates[gate], view.parameters(), strict=True):
            theirs.copy_(ours)
    torch.testing.assert_close(output(other, batch), expected, rtol=0, atol=1e-6)
    held = sum(
        parameter.numel() for m in folded.submodules["prefix"] for parameter in m.parameters()
    )
    assert held == attachment.counts["prefix"].deployed == folded.counts["prefix"].trained


@torch.no_grad()
@pytest.mark.parametrize("mlp", [64, None])
def test_initial_weights(mlp: int | None) -> None:
    """Everything N(0, 0.02), biases zero."""
    attachment = attach(tiny_bert(), Plan.uniform(Prefix(length=100, mlp=mlp)))
    for module in attachment.submodules["prefix"]:
        for name, parameter in module.named_parameters():
            if "bias" in name:
                assert not parameter.any()
            else:
                assert float(parameter.std()) == pytest.approx(0.02, rel=0.1), name


def test_reentrant_checkpointing_is_refused() -> None:
    model = tiny_bert().train()
    prefixed(model, Prefix(length=3))
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(RuntimeError, match=r"use_reentrant=False, or Prefix\(mlp=None\)"):
        model(input_ids=TOKENS)


OFF_THE_INTERFACE = {name for name, entry in ZOO.items() if not entry.interface}


@pytest.mark.parametrize("name", sorted(OFF_THE_INTERFACE))
def test_families_off_the_interface(name: str) -> None:
    model = build(name)
    family = model.config.model_type
    with pytest.raises(ValueError, match=f"^{family} cannot take a prefix.*LoRA, Adapter, BitFit"):
        attach(model, Plan.uniform(Prefix()))
    assert not any("pelt" in name for name in model.state_dict())


def test_a_stack_off_the_interface_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """LongT5's encoder does not use the attention interface; its decoder gets prefixes."""
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = AutoConfig.for_model("longt5", vocab_size=100, decoder_start_token_id=0, **shape)
    with caplog.at_level(logging.WARNING, "lightning_pelt"):
        attachment = attach(
            AutoModelForSeq2SeqLM.from_config(config), Plan.uniform(Prefix(mlp=None))
        )
    said = [record.message for record in caplog.records]
    assert said[0].startswith("prefix: no prefix in the encoder of longt5")
    assert {module.site.stack for module in attachment.submodules["prefix"]} == {"decoder"}


def test_one_prefix_per_attention() -> None:
    model = tiny_bert()
    names = set(model.state_dict())
    with pytest.raises(ValueError, match=r"attention\.self has a prefix already"):
        attach(model, Plan.uniform(Prefix(), Prefix(name="other")))
    assert set(model.state_dict()) == names
    attach(model, Plan.uniform(Prefix()))


@pytest.mark.parametrize(
    ("options", "message"), [({"length": 0}, "length=0"), ({"mlp": 0}, "mlp=0.*null for none")]
)
def test_bad_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prefix(**options)
