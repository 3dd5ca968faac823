"""Tiny models for examples and tests, and what tests ask of an attached model."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from lightning_pelt.attach import CHILD, Attachment

VOCABULARY = 100


def draw(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """``model`` with wide random weights, so that a small change anywhere shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.15 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    return model.eval()


def tiny_bert() -> PreTrainedModel:
    """A BERT of two blocks, 32 wide, with a head of three classes."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.num_labels = 3
    return draw(BertForSequenceClassification(config))


def tiny_gpt2() -> PreTrainedModel:
    """A GPT-2 of two blocks, 32 wide: fused projections, pre-norm."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return draw(GPT2LMHeadModel(config))


def tiny_llama() -> PreTrainedModel:
    """A Llama of two blocks, 32 wide: grouped queries, rotary positions, a gated feed-forward."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    return draw(LlamaForCausalLM(config))


def awaken(attachment: Attachment, *, std: float = 0.1, seed: int = 0) -> None:
    """Add noise to every trained weight but the head's: a fresh method may do nothing yet."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, group in attachment.parameter_groups().items():
            for parameter in group if name not in ("head", "base") else ():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter), alpha=std)


def hook_counts(model: nn.Module) -> dict[str, int]:
    """Number of hooks of every kind on each module."""
    counts = {}
    for path, module in model.named_modules():
        own = vars(module).items()
        kinds = {k: v for k, v in own if k.endswith("_hooks") and isinstance(v, dict)}
        counts[path] = sum(len(hooks) for hooks in kinds.values())
    return counts


def is_ours(name: str) -> bool:
    """Whether a parameter or state-dict name belongs to a submodule of a method."""
    return CHILD in name.split(".")
