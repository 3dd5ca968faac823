"""Attention masks of every kind: which tokens are real, computed once for all blocks."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN = -100.0  # added to a score, it leaves a weight of exp(-100); padding has -1e4 or less

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
    found = cache.get(key)
    if found is None or found[0] != version:
        found = cache[key] = version, compute()
    return found[1]


def _may_change(mask: Any) -> bool:
    """Whether a mask's values or graph may change without a new version number."""
    if not isinstance(mask, Tensor):
        return False
    captured = mask.is_cuda and torch.cuda.is_current_stream_capturing()
    return mask.requires_grad or mask.is_inference() or captured


def real_tokens(
    mask: Any, rows: int, tokens: int, *, cached: bool = False, past: Tensor | None = None
) -> Tensor:
    """Which tokens any query sees, (rows, tokens) or (1, tokens), for every kind of mask.

    Boolean and integer masks are true where a key is seen. Floating-point masks are added to the
    scores, except those of ones and zeros with a column per key.

    Args:
        mask: (B, K), (B, Q, K), (B, 1 or heads, Q, K), a flex attention ``BlockMask``; or
            block-local, (B, blocks, L, 3 L) with or without an axis of heads: every block of L
            tokens has columns for the block before it, itself, and the one after it. B may be 1.
        rows: size of the batch.
        tokens: of each row.
        cached: whether columns in front of theirs belong to tokens in a cache.
        past: number of tokens in the cache, (), if there are columns for tokens to come as well.

    Raises:
        ValueError: the mask has another shape.
    """
    if not isinstance(mask, Tensor):
        mask = _dense(mask)
    shape = mask.shape
    if mask.dim() not in (2, 3, 4, 5) or shape[0] not in (1, rows) or not mask.numel():
        raise unreadable(mask, rows, tokens)
    if mask.dim() == 5:
        return _real_in_blocks(mask, rows, tokens)
    if mask.dim() == 4 and not cached and shape[-2] > 1 and _fits(shape, 1, tokens):
        return _real_in_blocks(mask[:, :, None], rows, tokens)
    if shape[-1] < tokens or (shape[-1] > tokens and not cached):
        raise unreadable(mask, rows, tokens)
    seen = _seen_columns(mask) if mask.dim() == 2 else _seen_keys(mask)
    return _current(seen, tokens, past)


def first_of_each(mask: Any, positions: Any, rows: int, tokens: int) -> Tensor | None:
    """Which tokens begin an example of a packed row, (1 or rows, tokens) booleans.

    That is a token that does not attend to the one before it. Where the positions of the tokens are
    known, they start again there too: a model may attend within chunks of a text. Without a mask,
    the positions alone tell it, as they tell flash attention.

    Args:
        mask: (B, 1 or heads, tokens, tokens) or a flex attention ``BlockMask``; B may be 1.
        positions: (B, tokens); others are not used.
        rows: size of the batch.
        tokens: of each row.

    Returns:
        None if the mask has another shape, which transformers' masks of packed rows do not have.
    """
    restarts = _restarts(positions, rows, tokens)
    if mask is None:
        return restarts if rows == 1 else None  # flash attention reads the positions of one row
    if not isinstance(mask, Tensor):
        mask = _dense(mask)
    if mask.dim() != 4 or mask.shape[0] not in (1, rows) or mask.shape[-2:] != (tokens, tokens):
        return None
    before = _seen(mask.diagonal(-1, -2, -1)).any(1)  # whether a token sees the one before it
    starts = F.pad(~before, (1, 0), value=True)
    return starts if restarts is None else starts & restarts


def _restarts(positions: Any, rows: int, tokens: int) -> Tensor | None:
    """Where numbers of positions do not go on, (1 or rows, tokens); None if there are none."""
    if not isinstance(positions, Tensor) or positions.dim() != 2 or tokens != positions.shape[1]:
        return None
    if positions.shape[0] not in (1, rows):
        return None
    return F.pad(positions.diff(dim=-1) != 1, (1, 0), value=True)


def unreadable(mask: Any, rows: int, tokens: int) -> ValueError:
    """The error for a mask that does not belong to (rows, tokens)."""
    return ValueError(
        f"a gate pools over {rows} x {tokens} tokens and cannot tell from the attention mask of "
        f"shape {tuple(mask.shape)} which of them are padding: use Gate(pool='token'), or "
        "Gate(pool='all') to count padding too"
    )


def _current(seen: Tensor, tokens: int, past: Tensor | None) -> Tensor:
    """The columns of the current tokens. In cached decoding, others belong to past ones."""
    further = seen.shape[1] - tokens
    if past is None or further == 0:
        return seen[:, further:]
    start = past.clamp(max=further)  # a sliding window has fewer columns than tokens
    return seen.index_select(1, start + torch.arange(tokens, device=seen.device))


def _seen(mask: Tensor) -> Tensor:
    return mask > HIDDEN if mask.is_floating_point() else mask.bool()


def _seen_keys(mask: Tensor) -> Tensor:
    """(B, ..., K) -> (B, K)."""
    return _seen(mask).flatten(1, -2).any(1)


def _seen_columns(mask: Tensor) -> Tensor:
    """(B, K), one column per key. Floats are ones and zeros, or added to the scores."""
    if not mask.is_floating_point():
        return mask.bool()
    # A mask that is added has no ones: Longformer's has zeros, -1e4, and 1e4 for global tokens.
    factors = (mask.amax() == 1) & (mask.amin() >= 0)
    return torch.where(factors, mask > 0, _seen(mask))


def _dense(mask: Any) -> Tensor:
    """Flex attention's BlockMask as booleans (B, heads, Q, K)."""
    from torch.nn.attention.flex_attention import create_mask

    queries, keys = mask.seq_lengths
    return create_mask(mask.mask_mod, mask.shape[0], None, queries, keys, mask.kv_indices.device)


def _fits(shape: torch.Size, axis: int, tokens: int) -> bool:
    """Whether ``axis`` counts blocks that hold ``tokens``, each with columns for its neighbours."""
    length = shape[-2]
    return shape[-1] == 3 * length and shape[axis] == -(-tokens // length)


def _real_in_blocks(mask: Tensor, rows: int, tokens: int) -> Tensor:
    """Block-local, (B, heads, blocks, L, 3 L) or (B, blocks, heads, L, 3 L) -> (B, tokens)."""
    second, first = _fits(mask.shape, 2, tokens), _fits(mask.shape, 1, tokens)
    if not (first or second):
        raise unreadable(mask, rows, tokens)
    length = mask.shape[-2]
    own = _seen(mask[..., length : 2 * length]).any(-2)  # (B, heads, blocks, L)
    if first and second:  # as many heads as blocks: all heads see the same
        real = torch.where((own == own[:, :1]).all(), own.any(1), own.any(2))
    else:
        real = own.any(1 if second else 2)
    return real.flatten(1)[:, :tokens]
