"""A merged model is one of transformers: saved, loaded by name, and equal to peft's merged one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from zoo import build, inputs, output

from lightning_pelt import (
    IA3,
    BitFit,
    Gate,
    LoRA,
    Plan,
    attach,
    load_adapters,
    merge,
    save_adapters,
)
from lightning_pelt.attach import Attachment
from lightning_pelt.methods.base import Method
from lightning_pelt.testing import awaken

INNER = r"layer\.\d\.output\.dense"  # not the output of the attention
SITES = ("key", "value", "ffn.out")
FAMILIES = ["bert", "gpt2", "llama", "t5", "phi3", "gpt_neox"]
CONSTANT = Gate(learned=False)
ALONE: dict[str, list[Method]] = {
    "lora": [LoRA(r=2, sites=SITES)],
    "ia3": [IA3()],
    "bitfit": [BitFit()],
    "norms": [],
}
TOGETHER: dict[str, list[Method]] = {
    "lora-ia3-bitfit": [LoRA(r=2, sites=SITES), IA3(), BitFit(sites=SITES)],
    "bitfit-ia3-lora": [BitFit(sites=SITES), IA3(), LoRA(r=2, sites=SITES)],
}
GATED: dict[str, list[Method]] = {
    "lora": [LoRA(r=2, sites=SITES, gate=CONSTANT)],
    "ia3": [IA3(gate=CONSTANT)],
    "bitfit": [BitFit(gate=CONSTANT)],
}


@torch.no_grad()
def run(model: PreTrainedModel, name: str = "bert") -> Tensor:
    return output(model, inputs(name))


def trained(name: str, plan: Plan, openness: float = 1.0) -> PreTrainedModel:
    """A model of which head, norms and submodules were trained."""
    model = build(name)
    attachment = attach(model, plan)
    awaken(attachment)
    for gate in attachment.gates.values():
        gate.set_open(openness)
    with torch.no_grad():
        for parameter in attachment.parameter_groups().get("head", []):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def assert_loads(model: PreTrainedModel, name: str, folder: Path) -> None:
    """Saved after ``merge``, the class loads the outputs of the unmerged model."""
    before = run(model, name)
    merge(model).save_pretrained(folder)
    again, report = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(run(again.eval(), name), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ALONE)
@pytest.mark.parametrize("name", FAMILIES)
def test_each_method_loads(name, kind, tmp_path):
    if kind == "bitfit" and name in ("llama", "t5", "phi3"):
        pytest.skip("layers without biases: test_merging_methods")
    assert_loads(trained(name, Plan.uniform(*ALONE[kind], norms=True)), name, tmp_path)


@pytest.mark.parametrize("order", TOGETHER)
@pytest.mark.parametrize("name", ["bert", "gpt2", "gpt_neox"])
def test_combinations_load(name, order, tmp_path):
    assert_loads(trained(name, Plan.uniform(*TOGETHER[order], norms=True)), name, tmp_path)


@pytest.mark.parametrize("openness", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("kind", GATED)
def test_behind_constant_gates_loads(kind, openness, tmp_path):
    assert_loads(trained("bert", Plan.uniform(*GATED[kind]), openness), "bert", tmp_path)


def test_the_head_and_its_labels_load(tmp_path):
    """As whoever has transformers alone opens the folder."""
    model = trained("bert", Plan.uniform(*TOGETHER["lora-ia3-bitfit"], norms=True))
    model.config.id2label = {0: "bad", 1: "fair", 2: "good"}
    before = run(model)
    merge(model).save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert again.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    torch.testing.assert_close(run(again), before, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_adapters_from_a_folder_merge_and_load(tmp_path):
    """On a base that was loaded by name, with what was saved of a training run."""
    build("bert").save_pretrained(tmp_path / "base")
    kind = type(build("bert"))
    model = kind.from_pretrained(tmp_path / "base")
    awaken(attach(model, Plan.uniform(*TOGETHER["lora-ia3-bitfit"], norms=True)))
    before = run(model)
    save_adapters(model, tmp_path / "adapters")
    fresh = kind.from_pretrained(tmp_path / "base")
    load_adapters(fresh, tmp_path / "adapters")
    merge(fresh).save_pretrained(tmp_path / "whole")
    again = kind.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(run(again), before, rtol=1e-5, atol=1e-5)


def test_a_half_precision_base_loads_in_its_dtype(tmp_path):
    model = build("bert").bfloat16()
    awaken(attach(model, Plan.uniform(*TOGETHER["lora-ia3-bitfit"], norms=True)))
    merge(model).save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert torch.equal(run(again), run(model))


# peft as an oracle: the same numbers in both libraries, merged by each.


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)


@torch.no_grad()
def factors_of(attachment: Attachment, path: str, role: str) -> tuple[Tensor, Tensor]:
    """A and B of LoRA at one site."""
    host: Any = attachment.model.get_submodule(path)
    up = next(module for key, module in host.pelt.items() if "up" in key)
    index = up.indices[up.keys.index(role)]
    return up.down.A.unflatten(0, (-1, up.rank))[index], getattr(up, f"B_{role}")


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "targets", "sites"),
    [
        ("bert", ["query", "value"], ("query", "value")),
        ("gpt2", ["attn.c_proj"], ("output",)),  # Conv1D
        ("llama", ["q_proj", "down_proj"], ("query", "ffn.out")),
        ("t5", ["q", "v"], ("query", "value")),
    ],
)
def test_lora_equals_that_of_peft(name, targets, sites):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=targets, fan_in_fan_out=name == "gpt2"
    )
    theirs: Any = peft.get_peft_model(build(name), config)
    ours = build(name)
    attachment = attach(ours, Plan.uniform(LoRA(r=2, alpha=6, sites=sites), norms=False))
    awaken(attachment)
    for site in attachment.plan.methods[0].where(attachment.anatomy):
        layer = theirs.base_model.model.get_submodule(site.path)
        a, b = factors_of(attachment, site.path, site.label.replace(".", "_"))
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b)
    assert_same_weights(merge(ours), theirs.merge_and_unload())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "targets", "forward"),
    [
        ("bert", rf".*(self\.key|self\.value|{INNER})", rf".*{INNER}"),
        ("llama", ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
        ("t5", ["k", "v", "wo"], ["wo"]),
    ],
)
def test_ia3_equals_that_of_peft(name, targets, forward):
    peft = pytest.importorskip("peft")
    config = peft.IA3Config(target_modules=targets, feedforward_modules=forward)
    theirs: Any = peft.get_peft_model(build(name), config)
    ours = build(name)
    attachment = attach(ours, Plan.uniform(IA3(), norms=False))
    awaken(attachment)
    for module in attachment.submodules["ia3"]:
        layer = theirs.base_model.model.get_submodule(module.site.path)
        vector = layer.ia3_l["default"]
        vector.copy_(module.vector.reshape(vector.shape))
    assert_same_weights(merge(ours), theirs.merge_and_unload())
