"""Batches for models of images and text: random pixels, and words among which images stand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from families.family import Inputs

WORDS = (5, 17, 40, 9, 31, 22, 60, 14)
IMAGE_TOKENS = ("image_token_id", "image_token_index")


def pixels(*shape: int) -> Tensor:
    """Random pixels of a fixed seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def words(images: int = 0, token: int = 0, *, video: int = 0, video_token: int = 0) -> Tensor:
    """(1, T): words, among which ``images`` and ``video`` placeholders stand."""
    front, back = WORDS[:3], WORDS[3:]
    return torch.tensor([[*front, *[token] * images, *[video_token] * video, *back]])


def fixed(**inputs: Any) -> Inputs:
    """The same batch for every model."""
    return lambda model: dict(inputs)


def pictured(*shape: int, tokens: int, **more: Any) -> Inputs:
    """Pixels of ``shape``, words that hold ``tokens`` image tokens, and ``more``."""

    def inputs(model: PreTrainedModel) -> dict[str, Any]:
        found = (getattr(model.config, name, None) for name in IMAGE_TOKENS)
        token = next(token for token in found if token is not None)
        return {"input_ids": words(tokens, token), "pixel_values": pixels(*shape), **more}

    return inputs


def captioned(*shape: int, **more: Any) -> Inputs:
    """Pixels of ``shape``, words without image tokens, and ``more``."""
    return fixed(input_ids=words(), pixel_values=pixels(*shape), **more)
