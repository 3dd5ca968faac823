"""Which stacks hide later tokens, judged from all of their tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    PegasusXConfig,
    PegasusXModel,
    PreTrainedModel,
)
from zoo import build

from lightning_pelt import Gate, UniPELT, attach
from lightning_pelt.anatomy import examine
from lightning_pelt.anatomy._causality import is_causal
from lightning_pelt.anatomy._projections import Attention
from lightning_pelt.anatomy.calls import AttentionCall
from lightning_pelt.testing import awaken, draw

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
IMAGE = {**SHAPE, "image_size": 16, "patch_size": 4}


def judged(visible: Tensor, *, declared: bool = False) -> bool:
    """Whether an attention (T, T) with these visible pairs counts as causal."""
    module = nn.Identity()
    module.is_causal = declared  # type: ignore[assignment]
    call = AttentionCall(module, 0, True, [], seen=visible)
    return is_causal(Attention(call, {}, None), words=len(visible))


FULL = torch.ones(6, 6, dtype=torch.bool)
PREFIX = FULL.tril()
PREFIX[:3, :3] = True  # three tokens of an image, then words
LAST_ONLY = FULL.clone()
LAST_ONLY[:5, 5] = False  # only the last token is hidden
LONG = torch.ones(300, 300, dtype=torch.bool)
LONG_PREFIX = LONG.clone()
LONG_PREFIX[:295, 295:] = False


@pytest.mark.parametrize(
    ("visible", "causal"),
    [
        (FULL, False),
        (FULL.tril(), True),
        (PREFIX, True),
        (LAST_ONLY, True),
        (FULL.tril(2).triu(-2), False),  # windows
        (FULL.tril().triu(-2), True),  # windows of earlier tokens
        (torch.block_diag(FULL, FULL).bool(), False),
        (LONG, False),
        (LONG.tril(), True),
        (LONG_PREFIX, True),
        (torch.cat([FULL, FULL.tril()], 1), True),  # words behind a prompt in the keys
        (torch.cat([FULL, FULL], 1), False),
        (torch.cat([FULL.tril(), FULL], 1), True),  # words before the states of an encoder
        (FULL[:, :3], False),  # reduced keys
        (torch.cat([~FULL, FULL, ~FULL], 1), False),  # a block of words between its neighbours
        (torch.cat([FULL, FULL.tril(), ~FULL], 1), True),
        (FULL & (torch.arange(6) < 4), False),  # a row that is padded to a block
        (FULL.tril() & (torch.arange(6) < 4), True),
        (LONG_PREFIX.flip(0, 1), False),  # the first are registers, which see nobody else
    ],
)
def test_masks(visible: Tensor, causal: bool) -> None:
    assert judged(visible) == causal


def test_in_doubt_it_is_causal() -> None:
    """A prompt that sees all of itself says nothing of the words that follow in training."""
    assert judged(FULL, declared=True)


def git() -> PreTrainedModel:
    return draw(GitForCausalLM(GitConfig(**SHAPE, vocab_size=100, vision_config=IMAGE)))


@torch.no_grad()
@pytest.mark.parametrize("tokens", [3, 8])
def test_words_behind_an_image(tokens: int) -> None:
    model = git()
    attachment = attach(model, UniPELT())
    assert [stack.causal for stack in attachment.anatomy.stacks] == [False, True]
    awaken(attachment, std=0.3)
    image, words = torch.randn(1, 3, 16, 16), torch.arange(3, 3 + tokens)[None]
    changed = words.clone()
    changed[:, -1] = 50
    one = model(input_ids=words, pixel_values=image).logits
    other = model(input_ids=changed, pixel_values=image).logits
    torch.testing.assert_close(one[:, :-1], other[:, :-1], rtol=0, atol=1e-6)
    assert not torch.allclose(one[:, -1], other[:, -1], atol=1e-3)


def test_stacks_have_different_names() -> None:
    """Two stacks called encoder would share the answer of the first: here, not causal."""
    text = {**SHAPE, "vocab_size": 100, "model_type": "opt"}
    text |= {"ffn_dim": 64, "word_embed_proj_dim": 32}
    bridge = {**SHAPE, "vocab_size": 100, "encoder_hidden_size": 32}
    config = Blip2Config(
        vision_config=IMAGE,
        qformer_config=bridge,
        text_config=text,
        num_query_tokens=4,
        image_token_index=99,
    )
    model = Blip2ForConditionalGeneration(config).eval()
    assert [(stack.name, stack.causal) for stack in examine(model).stacks] == [
        ("vision", False),
        ("qformer", False),
        ("text", True),
    ]


def test_a_row_shorter_than_a_block_is_not_causal() -> None:
    """PEGASUS-X pads rows to blocks of 512 tokens, behind the global tokens."""
    config = PegasusXConfig(
        vocab_size=100,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
    )
    assert (config.block_size, config.num_global_tokens) == (512, 32)
    stacks = examine(PegasusXModel(config).eval()).stacks
    assert [(stack.name, stack.causal) for stack in stacks] == [
        ("encoder", False),
        ("decoder", True),
    ]


def test_local_attention_is_not_causal() -> None:
    model = build("modernbert")
    ids = torch.arange(3, 43)[None]  # longer than its windows of 8
    assert not examine(model, {"input_ids": ids}).stacks[0].causal
    assert attach(model, UniPELT(gate=Gate())).gates["00/lora.query"].layer.pool == "masked"
