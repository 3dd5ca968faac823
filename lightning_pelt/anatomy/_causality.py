"""Causality: whether some token of a stack is hidden from an earlier one."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pelt.anatomy._projections import Attention

ALL = 16  # tokens; of more than these, the first, the last, and some between are judged


def is_causal(attention: Attention) -> bool:
    """Whether a later token is hidden from an earlier one that it sees.

    A prefix language model is causal: its image or its prompt sees all of itself, and the words
    behind see it without being seen. Windows, which hide tokens from each other, are not causal.
    Where the attention cannot be judged, it counts as causal, and so does one that its module
    declares causal, since other inputs may make it so.
    """
    value = attention.projections.get("value")
    if value is None or attention.output is None:
        return True
    context, projected = next(iter(attention.output.inputs.values())), value[0].output
    if projected is None or context.dim() != 3 or projected.dim() != 3 or not context.requires_grad:
        return True
    if projected.shape[1] == 1:  # the family pools its tokens before the attention
        return True
    if context.shape[:2] != projected.shape[:2]:  # such as an attention over another stack
        return False
    if getattr(attention.module, "is_causal", False) is True:
        return True
    sees = _visibility(context, projected)
    return bool((sees.T & ~sees).triu(1).any())


def _visibility(context: Tensor, projected: Tensor) -> Tensor:
    """Whether token i sees token j, (n, n), from the attention's values and its result."""
    tokens = _judged(context.shape[1])
    rows = []
    for token in tokens:
        (gradient,) = torch.autograd.grad(
            context[:, token].sum(), projected, retain_graph=True, allow_unused=True
        )
        seen = projected if gradient is None else gradient
        rows.append((seen != 0).any(-1).any(0)[tokens] & (gradient is not None))
    return torch.stack(rows)


def _judged(count: int) -> list[int]:
    if count <= ALL:
        return list(range(count))
    between = torch.linspace(6, count - 7, 4).long().tolist()
    return sorted({*range(6), *between, *range(count - 6, count)})
