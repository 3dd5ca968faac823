"""Adapters in PEFT's format compute the same in PEFT, on every family; the rest is refused."""

from __future__ import annotations

import json

import pytest
import torch
from exchange.peft_oracle import EXACT, attached, in_peft, run
from families.catalogue import by_label
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close
from zoo import ZOO, build

from lightning_pelt import (
    IA3,
    XPEFT,
    Adapter,
    BitFit,
    Compacter,
    FullFineTuning,
    Gate,
    Group,
    HeadOnly,
    LoRA,
    Plan,
    Prefix,
    Prompt,
    UniPELT,
    attach,
    save_adapters,
)
from lightning_pelt.exchange.peft import save_peft

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def config_of(folder):
    return json.loads((folder / CONFIG).read_text())


@pytest.mark.parametrize("name", ZOO)
def test_every_family_computes_the_same_in_peft(tmp_path, name):
    attachment = attached(name, Plan.uniform(LoRA(r=3, alpha=5.0)))
    here = run(attachment.model, name)
    there = run(in_peft(save_peft(attachment.model, tmp_path), build(name)), name)
    size = max(1.0, float(here.abs().max()))  # logits near 3 have a precision of 2.4e-7
    assert_close(there, here, atol=1e-6 * size, rtol=0)
    assert (here - run(build(name), name)).abs().max() > 1e-3


# Their experts and masks do not run in double precision.
SINGLE = {"mixtral", "qwen3_moe", "deepseek_v3", "xglm"}


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", [name for name in ZOO if name not in SINGLE])
def test_all_linear_layers_and_norms_in_double_precision(tmp_path, name):
    attachment = attached(name, Plan.uniform(LoRA(r=2, sites=["*.*"]), norms=True))
    here = run(attachment.model.double(), name)
    peft_model = in_peft(save_peft(attachment.model, tmp_path), build(name).double())
    assert_close(run(peft_model.double(), name), here, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["bert", "gpt2", "gpt_neox", "t5", "deberta-v2", "albert", "vit"])
def test_ia3_computes_the_same_in_peft(tmp_path, name):
    attachment = attached(name, Plan.uniform(IA3()))
    folder = save_peft(attachment.model, tmp_path)
    assert_close(run(in_peft(folder, build(name)), name), run(attachment.model, name), **EXACT)


PLANS = {
    "ranks differ": Plan([Group([LoRA(r=2)], blocks=[0]), Group([LoRA(r=4, alpha=3)], blocks=[1])]),
    "one block": Plan([Group([LoRA(r=2)], blocks=[1])]),
    "rslora": Plan.uniform(LoRA(r=3, alpha=5, rslora=True)),
    "two on a layer": Plan.uniform(LoRA(r=2), LoRA(r=3, alpha=1, sites=["query"], name="more")),
    "constant gates": Plan.uniform(LoRA(r=2, sites=["*.*"], gate=Gate(learned=False))),
    "layers outside": Plan.uniform(LoRA(r=2, sites=["linear", "value"])),
}


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_plans(tmp_path, name, plan):
    if name == "gpt2" and plan is PLANS["layers outside"]:
        pytest.skip("GPT-2 has no linear layers outside the blocks")
    attachment = attached(name, plan)
    for number, gate in enumerate(attachment.gates.values()):
        gate.set_open((0.25, 0.3, 1.0, 0.0)[number % 4])  # query and value of a layer differ
    folder = save_peft(attachment.model, tmp_path)
    assert_close(run(in_peft(folder, build(name)), name), run(attachment.model, name), **EXACT)


def test_a_constant_gate_of_ia3_is_folded(tmp_path):
    attachment = attached("bert", Plan.uniform(IA3(gate=Gate(learned=False))))
    for gate in attachment.gates.values():
        gate.set_open(0.25)
    folder = save_peft(attachment.model, tmp_path)
    assert_close(run(in_peft(folder, build("bert")), "bert"), run(attachment.model, "bert"))


# -- the files -------------------------------------------------------------------------------------


def test_the_configuration_is_the_usual_one_where_that_is_exact(tmp_path):
    save_peft(attached("bert", Plan.uniform(LoRA(r=4, dropout=0.1))).model, tmp_path)
    config = config_of(tmp_path)
    assert config["target_modules"] == ["query", "value"]
    assert config["modules_to_save"] == ["classifier"] and config["task_type"] == "SEQ_CLS"
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 16, 0.1)
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    names = load_file(tmp_path / TENSORS)
    layer = "base_model.model.bert.encoder.layer.1.attention.self.query"
    assert names[f"{layer}.lora_A.weight"].shape == (4, 32)
    assert names[f"{layer}.lora_B.weight"].shape == (32, 4)
    assert "base_model.model.classifier.weight" in names


def test_a_fused_projection_has_the_sum_of_the_ranks(tmp_path):
    save_peft(attached("gpt2", Plan.uniform(LoRA(r=4))).model, tmp_path)
    config = config_of(tmp_path)
    assert config["target_modules"] == ["c_attn"] and config["fan_in_fan_out"]
    assert (config["r"], config["lora_alpha"]) == (8, 32)  # the scale is that of each: 4
    B = load_file(tmp_path / TENSORS)["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"]
    assert B.shape == (96, 8)
    assert not B[:32, 4:].any() and not B[64:, :4].any() and not B[32:64].any()


def test_patterns_are_paths_and_the_rest_is_common(tmp_path):
    save_peft(attached("bert", PLANS["ranks differ"]).model, tmp_path)
    config = config_of(tmp_path)
    other = set(config["rank_pattern"])
    assert other == {f"bert.encoder.layer.1.attention.self.{n}" for n in ("query", "value")} or (
        other == {f"bert.encoder.layer.0.attention.self.{n}" for n in ("query", "value")}
    )


def test_the_files_do_not_depend_on_a_wrapper_around_the_model(tmp_path):
    attachment = attached("bert", Plan.uniform(LoRA(r=2)))
    save_peft(attachment.model, tmp_path / "alone")
    save_peft(nn.ModuleDict({"inner": attachment.model}), tmp_path / "around")
    alone, around = (load_file(tmp_path / n / TENSORS) for n in ("alone", "around"))
    assert alone.keys() == around.keys()
    assert config_of(tmp_path / "alone") == config_of(tmp_path / "around")


def test_a_half_precision_base(tmp_path):
    model = build("bert").to(torch.bfloat16)
    attachment = attach(model, Plan.uniform(LoRA(r=2)))
    for submodule in attachment.all_submodules:
        for parameter in submodule.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    here = run(model.eval(), "bert")
    there = run(in_peft(save_peft(model, tmp_path), build("bert").to(torch.bfloat16)), "bert")
    assert_close(there.float(), here.float(), atol=0.02, rtol=0.02)


@pytest.mark.slow
def test_a_head_that_is_named(tmp_path):
    attachment = attached("deberta", Plan.uniform(LoRA(r=2)), head=["classifier"])
    folder = save_peft(attachment.model, tmp_path)
    assert config_of(folder)["modules_to_save"] == ["classifier"]
    assert_close(
        run(in_peft(folder, build("deberta")), "deberta"), run(attachment.model, "deberta")
    )


def test_base_weights_that_were_trained_in_addition_are_written(tmp_path):
    attachment = attached("bert", Plan.uniform(LoRA(r=2)))
    dense = attachment.model.bert.pooler.dense  # type: ignore[union-attr]
    dense.weight.requires_grad_(True)
    with torch.no_grad():
        dense.weight.mul_(0.5)
    folder = save_peft(attachment.model, tmp_path)
    assert "pooler.dense" in str(config_of(folder)["modules_to_save"])
    assert_close(run(in_peft(folder, build("bert")), "bert"), run(attachment.model, "bert"))


# -- what is refused -------------------------------------------------------------------------------

REFUSED = {
    "learned gates": (Plan.uniform(LoRA(gate=Gate())), r"'lora' has learned gates.*distil_lora"),
    "adapter": (Plan.uniform(Adapter()), "Adapter cannot be written in PEFT's format.*distil_lora"),
    "prefix": (Plan.uniform(Prefix(length=2)), "Prefix cannot.*shifts the positions"),
    "prompt": (Plan.uniform(Prompt(length=2)), "Prompt cannot.*PEFT leaves the prompt"),
    "biases": (Plan.uniform(BitFit()), "BitFit cannot"),
    "compacter": (Plan.uniform(Compacter()), "Compacter cannot"),
    "profiles": (Plan.uniform(XPEFT()), "XPEFT cannot"),
    "unipelt": (UniPELT(), "cannot be written in PEFT's format"),
    "two kinds": (Plan.uniform(LoRA(), IA3()), "has LoRA and IA3.*one of them"),
    "head": (HeadOnly(), "has no method"),
    "everything": (FullFineTuning(), "trains the whole base"),
}


@pytest.mark.parametrize(("plan", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_peft_cannot_hold_is_refused_by_name(tmp_path, plan, message):
    model = build("bert")
    attach(model, plan)
    before = run(model, "bert")
    with pytest.raises(ValueError, match=message):
        save_peft(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert torch.equal(run(model, "bert"), before)


def test_a_constant_gate_on_a_layer_that_runs_twice_is_refused(tmp_path):
    attachment = attached("deberta-v2", Plan.uniform(LoRA(gate=Gate(learned=False))))
    with pytest.raises(ValueError, match="DeBERTa's positions"):
        save_peft(attachment.model, tmp_path)


def test_names_that_peft_takes_for_experts_are_refused(tmp_path):
    attachment = attached("deepseek_v3", Plan.uniform(LoRA(sites=["ffn.out"])))
    with pytest.raises(ValueError, match=r"would take model\.layers\.0\.mlp\.down_proj for an exp"):
        save_peft(attachment.model, tmp_path)


@pytest.mark.slow
def test_names_that_peft_would_rename_are_refused(tmp_path):
    family = by_label()["unlimited_ocr"]
    model = family.build()
    assert family.inputs is None
    attach(model, Plan.uniform(LoRA(r=2)))
    with pytest.raises(ValueError, match=r"would load .*language_model\.layers\.0.* as "):
        save_peft(model, tmp_path)


def test_a_module_of_the_users_own_is_refused(tmp_path):
    model = attached("bert", Plan.uniform(LoRA(r=2))).model
    around = nn.ModuleDict({"inner": model, "head": nn.Linear(3, 2)})
    with pytest.raises(ValueError, match=r"trains 2 tensors beside.*head\.bias"):
        save_peft(around, tmp_path)


def test_nothing_attached_and_a_folder_of_ours(tmp_path):
    with pytest.raises(ValueError, match="nothing is attached"):
        save_peft(build("bert"), tmp_path)
    model = attached("bert", Plan.uniform(LoRA(r=2))).model
    save_adapters(model, tmp_path)
    with pytest.raises(ValueError, match="holds adapters of save_adapters"):
        save_peft(model, tmp_path)


def test_a_site_inside_the_head_is_refused(tmp_path):
    attachment = attached("bert", Plan.uniform(LoRA(sites=["linear"])), head=["bert.pooler"])
    with pytest.raises(ValueError, match="trained as a whole"):
        save_peft(attachment.model, tmp_path)


def test_different_dropouts_give_a_warning(tmp_path):
    one, two = LoRA(r=2, dropout=0.1), LoRA(r=2, sites=["key"], name="b")
    attachment = attached("bert", Plan.uniform(one, two))
    with pytest.warns(UserWarning, match=r"dropout 0\.0 and 0\.1"):
        save_peft(attachment.model, tmp_path)
