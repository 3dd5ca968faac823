"""Families beyond the zoo: each has a structure that no family of the zoo has."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    BertModel,
    FocalNetConfig,
    FocalNetModel,
    PreTrainedModel,
)
from zoo import build

from lightning_pelt import Adapter, Gate, HeadOnly, LoRA, UniPELT, attach, detach
from lightning_pelt.anatomy import examine
from lightning_pelt.testing import hook_counts


def tiny(model_type: str, auto: Any = AutoModel, **options: Any) -> PreTrainedModel:
    shape = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2}
    config = AutoConfig.for_model(model_type, **shape, **options)
    return auto.from_config(config).eval()


HEADS = {"num_attention_heads": 4, "intermediate_size": 64}
LONG_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}


def test_half_on_the_interface() -> None:
    """LongT5's decoder uses it, its local attention does not: both are found."""
    anatomy = examine(tiny("longt5", AutoModelForSeq2SeqLM, **LONG_T5, decoder_start_token_id=0))
    assert [(stack.name, stack.causal) for stack in anatomy.stacks] == [
        ("encoder", False),
        ("decoder", True),
    ]
    queries = [s.path for s in anatomy.select("attention.query")]
    assert queries == [
        f"encoder.block.{block}.layer.0.LocalSelfAttention.q" for block in range(2)
    ] + [f"decoder.block.{block}.layer.0.SelfAttention.q" for block in range(2)]
    prefixed = {s.stack for s in anatomy.sites if s.heads}
    assert prefixed == {"decoder"}


def test_a_base_without_embeddings() -> None:
    """DINOv3's ``base_model`` takes hidden states; its embeddings do not count as a head."""
    model = tiny("dinov3_vit", image_size=32, patch_size=8, **HEADS)
    assert model.base_model is not model
    assert [stack.name for stack in examine(model).stacks] == ["encoder"]
    assert attach(model, HeadOnly()).head_size == 0


def test_a_family_without_attention() -> None:
    with pytest.raises(ValueError, match="no attention found in MambaModel"):
        examine(tiny("mamba"))


@pytest.mark.parametrize(
    ("model_type", "options", "feed_forward"),
    [
        ("fnet", {"intermediate_size": 64}, "encoder.layer.1.output.dense"),  # Fourier transforms
        # Queries, keys and values are products with parameters, not with linear layers.
        ("xlnet", {"d_model": 32, "n_head": 4, "d_inner": 64}, "layer.1.ff.layer_2"),
    ],
)
def test_blocks_whose_attention_is_not_known(
    model_type: str, options: dict[str, Any], feed_forward: str
) -> None:
    """Their feed-forwards are."""
    anatomy = examine(model := tiny(model_type, **options))
    roles = {site.role for site in anatomy.sites if site.block is not None}
    assert roles == {"ffn", "ffn.in", "ffn.out", "norm", "block"}
    assert anatomy.select("ffn")[1].path == feed_forward
    with pytest.raises(ValueError, match=f"unknown site on {model_type} 'query'"):
        attach(model, UniPELT([LoRA()]))


def test_stages_are_no_blocks() -> None:
    """FocalNet has no attention; its last stage holds two blocks, and has the width of both."""
    sizes = {"image_size": 64, "embed_dim": 16, "depths": [2, 2]}
    config = FocalNetConfig(**sizes, focal_levels=[2, 2], focal_windows=[3, 3])
    (stack,) = examine(model := FocalNetModel(config).eval()).stacks
    expected = [f"encoder.stages.{i}.layers.{j}" for i in range(2) for j in range(2)]
    assert list(stack.blocks) == expected
    hosts = [site.path for site in attach(model, HeadOnly()).anatomy.select("ffn")]
    assert hosts == [f"{block}.mlp.fc2" for block in expected]


def test_attentions_without_gradients_are_named() -> None:
    class Frozen(BertModel):
        @torch.no_grad()
        def forward(self, **inputs: Any) -> Any:
            return super().forward(**inputs)

        forward.__signature__ = inspect.signature(BertModel.forward)  # type: ignore[attr-defined]

    model = Frozen(build("bert").config)
    with pytest.raises(ValueError, match=r"no attention found in Frozen: .* run without gradients"):
        examine(model)


def test_a_model_that_needs_other_inputs() -> None:
    class Layout(BertModel):
        def forward(self, input_ids: Any, boxes: Any) -> Any:
            raise AssertionError

    model = Layout(build("bert").config)
    hooks = hook_counts(model)
    with pytest.raises(ValueError, match=r"Layout cannot be examined.*TypeError.*'boxes'"):
        examine(model)
    assert hook_counts(model) == hooks


def big_bird() -> PreTrainedModel:
    """Its sparse attention takes masks of other names, and no short inputs."""
    return tiny("big_bird", max_position_embeddings=512, block_size=4, num_random_blocks=1, **HEADS)


def test_a_model_that_replaces_its_modules() -> None:
    model: Any = big_bird()
    attentions = [layer.attention.self for layer in model.encoder.layer]
    with pytest.raises(ValueError, match=r"a forward replaces encoder.*attention_type='original"):
        examine(model)
    assert model.attention_type == "block_sparse"
    assert [layer.attention.self for layer in model.encoder.layer] == attentions
    whole: Any = tiny("big_bird", attention_type="original_full", **HEADS)
    gate = attach(whole, UniPELT([LoRA()])).gates["00/lora.query"]
    assert gate.layer.pool == "masked"


@pytest.mark.slow
def test_masks_of_unknown_names() -> None:
    """A gate that pools could not tell padding from words: by default it does not pool."""
    model, batch = big_bird(), {"input_ids": torch.arange(3, 67)[None]}
    attachment = attach(model, UniPELT([LoRA(), Adapter()]), example_inputs=batch)
    assert attachment.anatomy.unread == {"encoder"}
    assert {gate.layer.pool for gate in attachment.gates.values()} == {"token"}
    detach(model)
    with pytest.raises(ValueError, match=r"layer\.0\.attention\.self\.query cannot tell padding"):
        attach(model, UniPELT([LoRA()], gate=Gate(pool="masked")), example_inputs=batch)
    assert attach(model, UniPELT([LoRA()], gate=Gate(pool="all")), example_inputs=batch).gates


def test_a_fused_projection_in_four_shards() -> None:
    """CodeGen's channels are (q, v, k) of the first of four shards, then of the next one."""
    fused = torch.arange(96).view(4, 3, 8)
    expected = dict(zip(("query", "value", "key"), fused.transpose(0, 1).flatten(1), strict=True))
    sites = {s.role: s for s in examine(build("codegen")).sites if s.block == 0}
    for name, channels in expected.items():
        assert sites[f"attention.{name}"].channels == tuple(channels.tolist())
