"""Batches for models of text that read more than words, such as boxes, entities or regions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def words(count: int = 8) -> Tensor:
    """(1, ``count``): words without special tokens."""
    return (torch.arange(count) * 13 % 90 + 10)[None]


def features(*shape: int) -> Tensor:
    """Random features of a fixed seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def residues(model: PreTrainedModel) -> dict[str, Any]:
    """Words of a vocabulary of 33 (ESM)."""
    return {"input_ids": words() % 20 + 4}


def many_words(model: PreTrainedModel) -> dict[str, Any]:
    """48 words, for attentions over blocks that leave a short input to another attention."""
    accepted = {"input_ids": words(48)}
    if model.config.is_encoder_decoder:
        accepted["decoder_input_ids"] = words(8)
    return accepted


def boxed(model: PreTrainedModel) -> dict[str, Any]:
    """Words with their boxes in parts of the page (BROS)."""
    return {"input_ids": words(), "bbox": torch.linspace(0, 1, 8 * 4).reshape(1, 8, 4)}


def laid_out(model: PreTrainedModel) -> dict[str, Any]:
    """Words with their boxes in thousandths of the page (LiLT)."""
    return {"input_ids": words(), "bbox": torch.arange(8 * 4).reshape(1, 8, 4) * 9}


def with_entities(model: PreTrainedModel) -> dict[str, Any]:
    """Words and two entities at some of their positions (LUKE)."""
    positions = torch.full((1, 2, 4), -1)
    positions[0, 0, :2], positions[0, 1, :3] = torch.tensor([1, 2]), torch.tensor([4, 5, 6])
    return {
        "input_ids": words(),
        "entity_ids": torch.tensor([[3, 7]]),
        "entity_position_ids": positions,
        "entity_attention_mask": torch.ones(1, 2).long(),
    }


def with_regions(model: PreTrainedModel) -> dict[str, Any]:
    """Words and the features of three regions of an image (VisualBERT)."""
    width = model.config.visual_embedding_dim
    return {
        "input_ids": words(),
        "visual_embeds": features(1, 3, width),
        "visual_attention_mask": torch.ones(1, 3),
        "visual_token_type_ids": torch.ones(1, 3).long(),
    }


def with_placed_regions(model: PreTrainedModel) -> dict[str, Any]:
    """Words and three regions of an image with their positions (LXMERT)."""
    return {
        "input_ids": words(),
        "visual_feats": features(1, 3, model.config.visual_feat_dim),
        "visual_pos": features(1, 3, model.config.visual_pos_dim),
    }


def states(model: PreTrainedModel) -> dict[str, Any]:
    """Four steps of states, actions and rewards (Decision Transformer)."""
    return {
        "states": features(1, 4, model.config.state_dim),
        "actions": features(1, 4, model.config.act_dim),
        "rewards": features(1, 4, 1),
        "returns_to_go": features(1, 4, 1),
        "timesteps": torch.arange(4)[None],
        "attention_mask": torch.ones(1, 4).long(),
    }


def spoken(model: PreTrainedModel) -> dict[str, Any]:
    """Words and a short log-mel spectrogram (CLVP)."""
    bands = model.config.decoder_config.feature_size
    return {"input_ids": words(), "input_features": features(1, bands, 12)}
