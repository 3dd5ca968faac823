"""Tensors of a row with more tokens in front, and of the row without them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import ModelOutput


def more_columns(mask: Tensor, count: int) -> Tensor:
    """``mask`` (..., K) with ``count`` keys in front that every query sees, (..., count + K)."""
    return F.pad(mask, (count, 0), value=0.0 if _is_added(mask) else 1)


def extended_mask(mask: Tensor, before: int) -> Tensor:
    """A mask (B, T) or (B, ..., T or 1, T) for the prompt too. It sees what any token sees."""
    mask = more_columns(mask, before)
    if mask.dim() == 2 or mask.shape[-2] == 1:
        return mask
    front = mask.amax(-2, keepdim=True).expand(*mask.shape[:-2], before, -1)
    return torch.cat([front, mask], -2)


def _is_added(mask: Tensor) -> bool:
    """Whether a mask is added to the scores; one with a column per token is not."""
    return mask.is_floating_point() and mask.dim() > 2


def without(output: Any, before: int, total: int) -> Any:
    """Hidden states (B, total, d) and attentions (B, heads, total, total) without the prompt."""
    if isinstance(output, Tensor):
        if output.dim() == 3 and output.shape[1] == total:
            return output[:, before:]
        square = output.dim() == 4 and output.shape[2] == output.shape[3] == total
        return output[..., before:, before:] if square else output
    if isinstance(output, ModelOutput):
        for name, value in output.items():
            setattr(output, name, without(value, before, total))
        return output
    if isinstance(output, tuple):
        return tuple(without(value, before, total) for value in output)
    return output


def extended(given: Tensor, before: int, fill: int | None) -> Tensor:
    """Words or their types after ``fill``; ``position_ids`` shifted, after those of the prompt."""
    rows = (*given.shape[:-1], before)
    if fill is not None:
        return torch.cat([given.new_full(rows, fill), given], -1)
    front = torch.arange(before, device=given.device).expand(rows)
    return torch.cat([front, given + before], -1)
