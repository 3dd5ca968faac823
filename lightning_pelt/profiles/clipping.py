"""Clip the gradient of each profile by itself, so that no profile slows the others down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lightning_pelt.profiles.masks import Masks


def clip_profiles(
    masks: Masks, max_norm: float, heads: Sequence[nn.Parameter] = ()
) -> list[nn.Parameter]:
    """Scale every profile's gradient to a norm of at most ``max_norm``.

    Args:
        heads: the profiles' own, where they have them.

    Returns:
        The parameters that were looked after, present in the batch or not.
    """
    owned: list[list[nn.Parameter]] = [[logits] for logits in masks.logits]
    if masks.own_norms:
        owned = [[*own, norm] for own, norm in zip(owned, masks.norms, strict=True)]
    if heads:
        owned = [[*own, head] for own, head in zip(owned, heads, strict=True)]
    for parameters in owned:
        if any(parameter.grad is not None for parameter in parameters):
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return [parameter for parameters in owned for parameter in parameters]


def clip_rest(parameters: Iterable[Tensor], clipped: list[nn.Parameter], max_norm: float) -> None:
    """Scale the gradient of all other parameters, as one vector, to at most ``max_norm``."""
    known = set(map(id, clipped))
    rest = [parameter for parameter in parameters if id(parameter) not in known]
    torch.nn.utils.clip_grad_norm_(rest, max_norm)
