"""Prompts in PEFT's format: the same in encoder-decoders that embed alike, refused elsewhere."""

from __future__ import annotations

import json

import pytest
import torch
from exchange.peft_oracle import EXACT, attached, peft
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel
from zoo import build, inputs

from lightning_pelt import Gate, Plan, Prompt
from lightning_pelt.attach import find_attachment
from lightning_pelt.exchange.peft import load_peft, save_peft

CONFIG = "adapter_config.json"


@torch.no_grad()
def logits(model: PreTrainedModel, name: str) -> Tensor:
    return model(**inputs(name)).logits


@pytest.mark.parametrize("name", ["t5", "bart", "mt5", "umt5", "mbart"])
@pytest.mark.slow
def test_peft_computes_the_same(tmp_path, name):
    attachment = attached(name, Plan.uniform(Prompt(length=3)))
    here = logits(attachment.model, name)
    save_peft(attachment.model, tmp_path)
    there = peft.PeftModel.from_pretrained(build(name), str(tmp_path)).eval()
    assert_close(logits(there, name), here, **EXACT)
    words = {k: v for k, v in inputs(name).items() if not k.startswith("decoder")}
    generated = [m.generate(**words, max_new_tokens=4) for m in (there, attachment.model)]
    assert torch.equal(*generated)

    again = load_peft(build(name), tmp_path)
    assert again.plan == attachment.plan
    assert torch.equal(logits(again.model.eval(), name), here)


@pytest.mark.slow
def test_a_prompt_that_peft_trained(tmp_path):
    config = peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, num_transformer_submodules=1
    )
    model = peft.get_peft_model(build("t5"), config).eval()
    model.save_pretrained(str(tmp_path))
    attachment = load_peft(build("t5"), tmp_path)
    assert attachment.counts["prompt"].trained == 4 * 32
    assert_close(logits(attachment.model.eval(), "t5"), logits(model, "t5"), **EXACT)


@pytest.mark.slow
def test_a_constant_gate_is_folded(tmp_path):
    plan = Plan.uniform(Prompt(length=3, gate=Gate(learned=False)))
    attachment = attached("t5", plan)
    (gate,) = attachment.gates.values()
    gate.set_open(0.25)
    again = load_peft(build("t5"), save_peft(attachment.model, tmp_path))
    assert not again.gates
    assert_close(logits(again.model.eval(), "t5"), logits(attachment.model, "t5"), **EXACT)
    gate.set_open(0.0)
    with pytest.raises(ValueError, match="is closed"):
        save_peft(attachment.model, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bert", "leaves the prompt in the outputs of an encoder"),
        ("marian", "marian scales embeddings inside its encoder"),
        ("pegasus", "pegasus scales embeddings inside its encoder"),
    ],
)
def test_where_peft_computes_something_else_the_prompt_is_refused(tmp_path, name, message):
    attachment = attached(name, Plan.uniform(Prompt(length=3)))
    with pytest.raises(ValueError, match=f"{message}.*distil_lora"):
        save_peft(attachment.model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_prompts_that_cannot_be_loaded(tmp_path):
    save_peft(attached("t5", Plan.uniform(Prompt(length=3))).model, tmp_path)
    for name, message in (("marian", "scales embeddings"), ("bert", "in the outputs of an enc")):
        with pytest.raises(ValueError, match=message):
            load_peft(build(name), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"num_transformer_submodules": 2}))
    model = build("t5")
    with pytest.raises(ValueError, match="in front of the decoder too"):
        load_peft(model, tmp_path)
    assert find_attachment(model) is None


def test_norms_beside_a_prompt_are_refused(tmp_path):
    attachment = attached("t5", Plan.uniform(Prompt(length=3), norms=True))
    with pytest.raises(ValueError, match=r"layer_norm.* is trained beside the prompt"):
        save_peft(attachment.model, tmp_path)
