"""Gradient clipping per profile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def clip_per_profile(lists: Sequence[nn.ParameterList], max_norm: float) -> list[nn.Parameter]:
    """Scale the gradient of every profile to a norm of at most ``max_norm``.

    Args:
        lists: lists of parameters, each with one parameter per profile.
        max_norm: maximum norm of the gradient of all parameters of one profile.

    Returns:
        The parameters of all profiles, present in the batch or not.
    """
    profiles = [list(parameters) for parameters in zip(*lists, strict=True)]
    for parameters in profiles:
        if any(parameter.grad is not None for parameter in parameters):
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    return [parameter for parameters in profiles for parameter in parameters]
