"""Quantised layers: which of them equal an ordinary linear layer, and a model of such layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.base import HfQuantizer

from lightning_pelt.methods._ops import first_tensor

PAIRS = 16  # of random inputs
# Root mean square of what a layer lacks to W x + b, by that of its outputs: rounding to bf16 gives
# 0.0035 or less, and rounding the inputs to eight bits, as LLM.int8() does, 0.008 or more.
DEVIATION = 0.005


def can_dequantise(model: PreTrainedModel) -> bool:
    """Whether transformers has quantised the model in a way that it can undo."""
    quantizer: Any = getattr(model, "hf_quantizer", None)
    own = getattr(type(quantizer), "_dequantize", None)
    return own is not None and own is not HfQuantizer._dequantize


@torch.no_grad()
def is_affine(layer: nn.Module, d_in: int, like: torch.Tensor) -> bool:
    """Whether the output of a layer is W x + b for some W and b: f(x + z) + f(0) = f(x) + f(z).

    Args:
        layer: linear, with its weight in any form.
        d_in: width of its input.
        like: a tensor on its device and in the dtype of its input.
    """
    draw = torch.Generator().manual_seed(0)
    x, z = (torch.randn(PAIRS, d_in, generator=draw).to(like) for _ in range(2))
    with torch.autocast(like.device.type, enabled=False):
        inputs = (x + z, torch.zeros_like(x), x, z)
        both, none, one, other = (first_tensor(layer.forward(i)).float() for i in inputs)
    lacking = both + none - one - other
    return bool(lacking.square().mean() <= DEVIATION**2 * both.square().mean())


def dequantise(model: PreTrainedModel) -> None:
    """Give a model ordinary layers, and a configuration that names no quantisation.

    Raises:
        ValueError: transformers did not convert the model in place.
    """
    if model.dequantize() is not model:
        raise ValueError(
            f"transformers did not dequantise {type(model).__name__} in place: load the base, call "
            "its dequantize(), then load_adapters and merge"
        )
