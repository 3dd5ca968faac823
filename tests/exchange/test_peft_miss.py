"""MiSS and PiSSA in PEFT's format: both ways, with the same outputs; the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exchange.peft_oracle import attached, in_peft, peft, run, trained_by_peft
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from zoo import build

from lightning_pelt import Gate, Group, LoRA, MiSS, Plan
from lightning_pelt.exchange.peft import load_peft, save_peft

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    assert_close(one, other, atol=1e-6 * max(1.0, float(other.abs().max())), rtol=0)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt_neox", "t5"])
def test_miss_computes_the_same_in_peft_and_comes_back(tmp_path: Path, name: str) -> None:
    attachment = attached(name, Plan.uniform(MiSS(r=5, dropout=0.1)))
    here = run(attachment.model, name)
    folder = save_peft(attachment.model, tmp_path)
    close(run(in_peft(folder, build(name)), name), here)
    again = load_peft(build(name), folder)
    assert again.plan == attachment.plan
    assert torch.equal(run(again.model.eval(), name), here)
    save_file(load_file(folder / TENSORS), folder / TENSORS)  # without the plan in the header
    assert torch.equal(run(load_peft(build(name), folder).model.eval(), name), here)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_miss_that_peft_has_trained(tmp_path: Path, name: str) -> None:
    targets = {"bert": ["query", "value"], "llama": ["q_proj", "down_proj"]}[name]
    there = trained_by_peft(name, peft.MissConfig(r=6, target_modules=targets), tmp_path)
    attachment = load_peft(build(name), tmp_path)
    close(run(attachment.model.eval(), name), there)
    assert {method.init_args()["r"] for method in attachment.plan.methods} == {6}


def test_variants_of_miss_are_refused(tmp_path: Path) -> None:
    config = peft.MissConfig(r=4, mini_r=4, init_weights="mini", target_modules=["query"])
    trained_by_peft("bert", config, tmp_path)
    with pytest.raises(ValueError, match=r"init_weights='mini', a variant of MiSS"):
        load_peft(build("bert"), tmp_path)


def test_a_matrix_of_another_rank_is_refused(tmp_path: Path) -> None:
    save_peft(attached("bert", Plan.uniform(MiSS(r=4))).model, tmp_path)
    config: dict[str, Any] = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "r": 8}))
    with pytest.raises(ValueError, match=r"size mismatch: .*miss_block is \(4, 32\)"):
        load_peft(build("bert"), tmp_path)


@pytest.mark.parametrize(
    ("name", "plan", "message"),
    [
        ("gpt2", Plan.uniform(MiSS()), "is a Conv1D, on which PEFT has no MiSS"),
        (
            "bert",
            Plan([Group([MiSS(r=2)], blocks=[0]), Group([MiSS(r=4)], blocks=[1])]),
            "ranks 2 and 4, and PEFT's format has one",
        ),
        ("bert", Plan.uniform(MiSS(gate=Gate())), "has learned gates"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(
    tmp_path: Path, name: str, plan: Plan, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        save_peft(attached(name, plan).model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_constant_gate_of_miss_is_folded_in(tmp_path: Path) -> None:
    attachment = attached("bert", Plan.uniform(MiSS(r=4, gate=Gate(learned=False))))
    for gate in attachment.gates.values():
        gate.set_open(0.3)
    folder = save_peft(attachment.model, tmp_path)
    close(run(in_peft(folder, build("bert")), "bert"), run(attachment.model, "bert"))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_pissa_is_an_ordinary_lora_of_twice_the_rank(tmp_path: Path, name: str) -> None:
    """As after PEFT's own conversion, so that the base keeps its weights."""
    plan = Plan.uniform(LoRA(r=3, alpha=5.0, init="pissa"))
    attachment = attached(name, plan)
    folder, here = save_peft(attachment.model, tmp_path), run(attachment.model, name)
    config = json.loads((folder / CONFIG).read_text())
    assert config["init_lora_weights"] is True
    assert config["r"] == (6 if name == "bert" else 12)  # a fused layer holds two
    assert_close(run(in_peft(folder, build(name)), name), here, atol=2e-5, rtol=0)
    again = load_peft(build(name), folder)
    assert again.plan == plan
    assert torch.equal(run(again.model.eval(), name), here)
    save_file(load_file(folder / TENSORS), folder / TENSORS)  # without the plan in the header
    plain = load_peft(build(name), folder)
    assert plain.plan != plan
    assert_close(run(plain.model.eval(), name), here, atol=2e-5, rtol=0)
