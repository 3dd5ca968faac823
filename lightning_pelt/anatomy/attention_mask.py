"""Attention masks of every kind: which tokens are real, computed once for all blocks."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def once(mask: Any, key: Hashable, compute: Callable[[], T]) -> T:
    """``compute()``, cached on ``mask``, which a model passes to all of its blocks.

    Without the cache each block computes the value again, and a prefix saves it again for the
    backward pass.
    """
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or _may_change(mask):
        return compute()
    version = mask._version if isinstance(mask, Tensor) else 0
    cache: dict[Hashable, tuple[int, T]] = vars(mask).setdefault("pelt_cache", {})
    if key not in cache or cache[key][0] != version:
        cache[key] = version, compute()
    return cache[key][1]


def _may_change(mask: Any) -> bool:
    """Whether a mask's values or graph may change without a new version number."""
    if not isinstance(mask, Tensor):
        return False
    captured = mask.is_cuda and torch.cuda.is_current_stream_capturing()
    return mask.requires_grad or mask.is_inference() or captured


def real_tokens(mask: Any) -> Tensor | None:
    """Whether any query sees each key, for every kind of attention mask of transformers.

    Shapes: (B, T) or (B, 1 or heads, T or 1, T) -> (B, T). Boolean and integer masks are true where
    a key is seen. Floating-point masks are added to the scores.
    """
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.bool()
    return once(mask, "real", lambda: _seen_keys(mask))


def _seen_keys(mask: Any) -> Tensor:
    if not isinstance(mask, Tensor):  # flex attention's BlockMask
        from torch.nn.attention.flex_attention import create_mask

        queries, keys = mask.seq_lengths
        mask = create_mask(
            mask.mask_mod, mask.shape[0], None, queries, keys, mask.kv_indices.device
        )
    if mask.is_floating_point():
        mask = mask > torch.finfo(mask.dtype).min / 2
    return mask.bool().flatten(1, -2).any(1)
