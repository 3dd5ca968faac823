"""Blocks without a site of a method: it says which, once, when the plan is attached."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from zoo import build

from lightning_pelt import Adapter, Group, LoRA, Plan, attach

JAMBA: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_layer_period": 4,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 4,
    "use_mamba_kernels": False,
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
}


def jamba() -> Any:
    """Block 1 has the attention; blocks 1 and 3 have experts, blocks 0 and 2 are dense."""
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("jamba", **JAMBA)).eval()


def test_blocks_keep_the_numbers_of_the_model() -> None:
    attachment = attach(jamba(), Plan.uniform(LoRA(), Adapter()))
    blocks = attachment.anatomy.stacks[0].blocks
    assert blocks == tuple(f"model.layers.{number}" for number in range(4))
    reached = {method: set() for method in ("lora", "adapter")}
    for placed in attachment.plan.place(attachment.anatomy):
        reached[placed.method.name] = {site.block for site in placed.sites}
    assert reached == {"lora": {1}, "adapter": {0, 1, 2, 3}}


@pytest.mark.parametrize(
    ("plan", "messages"),
    [
        (Plan.uniform(Adapter()), []),
        (
            Plan.uniform(LoRA(), Adapter()),
            [
                "lora leaves out the blocks 0, 2-3 of the decoder, which have no site of its kind "
                "(attention.query, attention.value)"
            ],
        ),
        (
            Plan.uniform(LoRA(sites=("ffn.in",))),
            [
                "lora leaves out the blocks 1, 3 of the decoder, which have no site of its kind "
                "(ffn.in, ffn.in_2)"
            ],
        ),
        (Plan([Group([LoRA()], blocks=[1])]), []),
        (
            Plan([Group([LoRA()], blocks=[0, 1])]),
            [
                "lora leaves out block 0 of the decoder, which has no site of its kind "
                "(attention.query, attention.value)"
            ],
        ),
    ],
)
def test_says_which(plan: Plan, messages: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lightning_pelt"):
        attach(jamba(), plan)
    assert [record.getMessage() for record in caplog.records] == messages


def test_cross_attention_is_of_decoders(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lightning_pelt"):
        attach(build("bart"), Plan.uniform(LoRA(sites=("cross_attention.query",))))
    assert not caplog.records


def test_a_tower_that_does_not_run(caplog: pytest.LogCaptureFixture) -> None:
    """Examined on words alone, CLIP's vision tower is not seen."""
    model, words = build("clip"), {"input_ids": torch.tensor([[5, 17, 99]])}
    with caplog.at_level(logging.WARNING, logger="lightning_pelt"):
        attachment = attach(model.text_model, Plan.uniform(LoRA()), example_inputs=words)
        assert not caplog.records
        attachment.detach()
        model.forward = lambda input_ids: model.text_model(input_ids=input_ids)
        attach(model, Plan.uniform(LoRA()), example_inputs=words)
    (record,) = caplog.records
    assert "nothing is attached to vision_model.encoder.layers of clip" in record.getMessage()
