"""Causality: whether some token of a stack is hidden from an earlier one."""

from __future__ import annotations

from torch import Tensor

from lightning_pelt.anatomy._projections import Attention


def is_causal(attention: Attention, *, words: int) -> bool:
    """Whether a later token is hidden from an earlier one that it sees.

    A prefix language model is causal: its image or its prompt sees all of itself, and the words
    behind see it without being seen. Windows, which hide tokens from each other, are not causal.
    Where the attention of words cannot be judged, it counts as causal, and so does one that its
    module declares causal, since other inputs may make it so.

    Args:
        attention: the first or the last of a stack.
        words: how many words the model reads, 0 if it reads none.
    """
    seen = attention.call.seen
    if seen is None or seen.numel() == 1:
        return words > 0
    queries, keys = seen.shape
    if queries > keys:  # such as one over reduced keys (SegFormer)
        return False
    if getattr(attention.module, "is_causal", False) is True:
        return True
    if keys == 3 * queries:  # windows, with one on either side, which padding may fill
        count = min(queries, words or queries)
        return _hides_later(seen[:count, queries : queries + count])
    # Other keys may stand before those of the words (the prompts of MVP), or behind (T5Gemma 2).
    return _hides_later(seen[:, keys - queries :]) or _hides_later(seen[:, :queries])


def _hides_later(seen: Tensor) -> bool:
    """Whether later tokens are hidden from earlier ones that they see, and none the other way.

    A token that is hidden from all tokens, and from itself, is padding.
    """
    real = seen.any(0)
    seen = seen[real][:, real]
    later, earlier = seen.T & ~seen, seen & ~seen.T
    return bool(later.triu(1).any()) and not bool(earlier.triu(1).any())
