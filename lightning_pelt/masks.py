"""Attention masks of any kind: which tokens are real, worked out once for all blocks."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


def once(mask: Any, key: Hashable, make: Callable[[], Made]) -> Made:
    """``make()``, kept on the mask itself: a model hands the same one to all of its blocks.

    Otherwise each block would make its own, and with a prefix save it for the backward.
    """
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or _may_change(mask):
        return make()
    version = mask._version if isinstance(mask, Tensor) else 0
    kept: dict[Hashable, tuple[int, Made]] = vars(mask).setdefault("pelt_made", {})
    if key not in kept or kept[key][0] != version:
        kept[key] = version, make()
    return kept[key][1]


def _may_change(mask: Any) -> bool:
    """Whether a mask may take other values, or another graph, without its version telling."""
    if not isinstance(mask, Tensor):
        return False
    captured = mask.is_cuda and torch.cuda.is_current_stream_capturing()
    return mask.requires_grad or mask.is_inference() or captured


def real_tokens(mask: Any) -> Tensor | None:
    """Which keys some query sees, for any of transformers' kinds of attention mask.

    Shapes: (B, T) or (B, 1 or heads, T or 1, T) -> (B, T). Boolean and integer masks say what is
    seen, floating-point masks are added to the scores.
    """
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.bool()
    return once(mask, "real", lambda: _seen(mask))


def _seen(mask: Any) -> Tensor:
    if not isinstance(mask, Tensor):  # flex attention's BlockMask
        from torch.nn.attention.flex_attention import create_mask

        queries, keys = mask.seq_lengths
        mask = create_mask(
            mask.mask_mod, mask.shape[0], None, queries, keys, mask.kv_indices.device
        )
    if mask.is_floating_point():
        mask = mask > torch.finfo(mask.dtype).min / 2
    return mask.bool().flatten(1, -2).any(1)
