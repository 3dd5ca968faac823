"""Back from PEFT's format: files of ours are exact, and adapters of PEFT compute the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from exchange.peft_oracle import EXACT, attached, in_peft, peft, run, trained_by_peft
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from zoo import ZOO, build

from lightning_pelt import IA3, Gate, Group, LoRA, Plan, attach, detach, merge
from lightning_pelt.exchange.peft import load_peft, save_peft

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PLANS = {
    "plain": Plan.uniform(LoRA(r=3, alpha=5.0, dropout=0.1)),
    "norms": Plan.uniform(LoRA(r=2, sites=["*.*"]), norms=True),
    "groups": Plan([Group([LoRA(r=2)], blocks=[0]), Group([LoRA(r=4, name="b")], blocks=[1])]),
    "two on a layer": Plan.uniform(LoRA(r=2), LoRA(r=3, alpha=12, sites=["query"], name="more")),
    "rslora": Plan.uniform(LoRA(r=3, alpha=5, rslora=True)),
    "ia3": Plan.uniform(IA3()),
}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / TENSORS)


def equal_files(one: Path, other: Path) -> bool:
    first, second = tensors_of(one), tensors_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "deberta-v2"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_a_round_trip_keeps_the_plan_and_every_bit(tmp_path, name, plan):
    attachment = attached(name, plan)
    save_peft(attachment.model, tmp_path / "one")
    again = load_peft(build(name), tmp_path / "one")
    assert again.plan == plan
    assert torch.equal(run(again.model.eval(), name), run(attachment.model, name))
    mine, theirs = attachment.parameter_groups(), again.parameter_groups()
    assert mine.keys() == theirs.keys()
    for group in mine:
        assert all(torch.equal(*pair) for pair in zip(mine[group], theirs[group], strict=True))
    save_peft(again.model, tmp_path / "two")
    assert equal_files(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "gpt_neox"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_without_the_plan_in_the_header_the_tensors_tell(tmp_path, name, plan):
    attachment = attached(name, plan)
    save_peft(attachment.model, tmp_path)
    save_file(tensors_of(tmp_path), tmp_path / TENSORS)  # as another program copies them
    again = load_peft(build(name), tmp_path)
    assert_close(run(again.model.eval(), name), run(attachment.model, name), **EXACT)
    if plan is not PLANS["two on a layer"]:
        assert sum(c.trained for c in again.counts.values()) == sum(
            c.trained for c in attachment.counts.values()
        )


def test_an_edited_scale_holds_against_the_plan_in_the_header(tmp_path):
    attachment = attached("bert", PLANS["plain"])
    save_peft(attachment.model, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"lora_alpha": 10}))
    again = load_peft(build("bert"), tmp_path)
    assert again.plan.methods[0].alpha == 10  # type: ignore[attr-defined]
    there = in_peft(tmp_path, build("bert"))
    assert_close(run(again.model.eval(), "bert"), run(there, "bert"), **EXACT)


def test_folded_gates_come_back_as_a_scale(tmp_path):
    attachment = attached("gpt2", Plan.uniform(LoRA(r=2, gate=Gate(learned=False))))
    for number, gate in enumerate(attachment.gates.values()):
        gate.set_open((0.25, 0.3)[number % 2])
    again = load_peft(build("gpt2"), save_peft(attachment.model, tmp_path))
    assert not again.gates
    assert_close(run(again.model.eval(), "gpt2"), run(attachment.model, "gpt2"), **EXACT)


# -- adapters that PEFT trained --------------------------------------------------------------------


def lora(**options):
    return peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.1, **options)


WAYS = {
    "defaults": lora,
    "regex": lambda: lora(target_modules=r".*\.(0|1)\..*(query|q_proj|c_attn|\.q)"),
    "rslora": lambda: lora(use_rslora=True, target_modules="all-linear"),
}


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "llama"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_adapters_of_peft_compute_the_same(tmp_path, name, way):
    there = trained_by_peft(name, way(), tmp_path)
    again = load_peft(build(name), tmp_path)
    assert_close(run(again.model.eval(), name), there, atol=5e-6, rtol=5e-6)


WITHOUT_DEFAULTS = {"pegasus", "deepseek_v3", "qwen3_moe", "mixtral", "clip"}


@pytest.mark.parametrize("name", [n for n in ZOO if n not in WITHOUT_DEFAULTS])
def test_the_defaults_of_peft_for_every_family(tmp_path, name):
    try:
        there = trained_by_peft(name, lora(), tmp_path)
    except ValueError as error:
        pytest.skip(f"PEFT has no default here: {error}")
    again = load_peft(build(name), tmp_path)
    assert_close(run(again.model.eval(), name), there, atol=5e-6, rtol=5e-6)


def test_a_dense_adapter_of_a_fused_projection_comes_back_as_it_was(tmp_path):
    there = trained_by_peft("gpt2", lora(), tmp_path / "one")
    attachment = load_peft(build("gpt2"), tmp_path / "one")
    assert attachment.plan.methods[0].sites == (  # type: ignore[attr-defined]
        *("attention.query", "attention.key", "attention.value"),
    )
    save_peft(attachment.model, tmp_path / "two")
    assert equal_files(tmp_path / "one", tmp_path / "two")
    assert_close(run(in_peft(tmp_path / "two", build("gpt2")), "gpt2"), there, **EXACT)


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({"target_modules": ["query"], "layers_to_transform": [1]}, [1]),
        (
            {
                "target_modules": ["query"],
                "layers_to_transform": 0,
                "layers_pattern": "layer",
            },
            [0],
        ),
        (
            {"target_modules": ["query", "value"], "exclude_modules": r".*layer\.0\..*"},
            [1],
        ),
        ({"target_modules": ["bert.encoder.layer.0.attention.self.key"]}, [0]),
    ],
)
def test_adapters_in_some_layers(tmp_path, options, blocks):
    there = trained_by_peft("bert", lora(**options), tmp_path)
    attachment = load_peft(build("bert"), tmp_path)
    assert [group.blocks for group in attachment.plan.groups] == [blocks]
    assert_close(run(attachment.model.eval(), "bert"), there, **EXACT)


def test_ranks_and_scales_by_pattern_become_groups(tmp_path):
    config = lora(
        target_modules=["query", "value", "output.dense"],
        rank_pattern={r"layer\.0\.attention\.self\.query": 2, "value": 3},
        alpha_pattern={r"^bert\.encoder\.layer\.1\.output\.dense": 1},
    )
    there = trained_by_peft("bert", config, tmp_path)
    attachment = load_peft(build("bert"), tmp_path)
    assert len(attachment.plan.groups) == 2
    assert {method.r for method in attachment.plan.methods} == {2, 3, 4}  # type: ignore[attr-defined]
    assert_close(run(attachment.model.eval(), "bert"), there, **EXACT)


def test_norms_and_head_of_peft(tmp_path):
    config = lora(target_modules=["query"], modules_to_save=["classifier", "LayerNorm"])
    there = trained_by_peft("bert", config, tmp_path)
    attachment = load_peft(build("bert"), tmp_path)
    assert attachment.plan.norms and attachment.head
    assert_close(run(attachment.model.eval(), "bert"), there, **EXACT)
    fresh = build("bert")
    before = run(fresh, "bert")
    load_peft(fresh, tmp_path)
    detach(fresh)
    norm = "bert.encoder.layer.0.output.LayerNorm.weight"
    assert torch.equal(fresh.get_parameter(norm), build("bert").get_parameter(norm))
    assert not torch.equal(run(fresh, "bert"), before)  # the head stays


def test_ia3_of_peft(tmp_path):
    names = ["key", "value", "layer.0.output.dense", "layer.1.output.dense"]
    config = peft.IA3Config(target_modules=names, feedforward_modules=names[2:])
    there = trained_by_peft("bert", config, tmp_path)
    attachment = load_peft(build("bert"), tmp_path)
    assert [type(method) for method in attachment.plan.methods] == [IA3]
    assert_close(run(attachment.model.eval(), "bert"), there, **EXACT)


def test_a_pickled_file_is_read_without_pickle(tmp_path):
    there = trained_by_peft("bert", lora(), tmp_path)
    torch.save(tensors_of(tmp_path), tmp_path / "adapter_model.bin")
    (tmp_path / TENSORS).unlink()
    assert_close(run(load_peft(build("bert"), tmp_path).model.eval(), "bert"), there, **EXACT)


# -- around it -------------------------------------------------------------------------------------


def test_a_module_around_the_model_and_a_second_time(tmp_path):
    attachment = attached("bert", PLANS["plain"])
    save_peft(attachment.model, tmp_path)
    around = nn.ModuleDict({"inner": build("bert")})
    first = load_peft(around, tmp_path)
    with torch.no_grad():
        for parameter in first.parameters_of("lora"):
            parameter.add_(1.0)
    assert load_peft(around, tmp_path) is first
    assert torch.equal(run(first.model.eval(), "bert"), run(attachment.model, "bert"))


def test_an_adapter_of_peft_merges_like_in_peft(tmp_path):
    there = trained_by_peft("llama", lora(target_modules="all-linear"), tmp_path)
    attachment = load_peft(build("llama"), tmp_path)
    model = merge(attachment.model)
    assert_close(run(model.eval(), "llama"), there, atol=2e-5, rtol=2e-5)  # type: ignore[arg-type]


def test_a_half_precision_base(tmp_path):
    attachment = attached("llama", PLANS["plain"])
    save_peft(attachment.model, tmp_path)
    again = load_peft(build("llama").to(torch.bfloat16), tmp_path)
    kinds = {parameter.dtype for parameter in again.parameters_of("lora")}
    assert kinds == {torch.float32}
    pairs = zip(again.parameters_of("lora"), attachment.parameters_of("lora"), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_after_detaching_another_plan_can_be_attached(tmp_path):
    save_peft(attached("bert", PLANS["plain"]).model, tmp_path)
    model = build("bert")
    load_peft(model, tmp_path)
    detach(model)
    assert attach(model, Plan.uniform(LoRA(r=1))).counts["lora"].trained
