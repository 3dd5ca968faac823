"""Norms: which modules are norms, and which of them follow a sublayer (post-norm)."""

from __future__ import annotations

import torch
from torch import nn

from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy.recording import Call
from lightning_pelt.anatomy.sites import PostNorm, Source


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm with a weight vector, such as LayerNorm or RMSNorm."""
    weight = getattr(module, "weight", None)
    leaf = not any(True for _ in module.children())
    return leaf and "Norm" in type(module).__name__ and weight is not None and weight.dim() == 1


def find_post_norm(recorded: RecordedModel, linear: Call, source: Source) -> PostNorm | None:
    """The norm whose input is the output of ``linear`` plus the sublayer's input ``source``."""
    residual, output = recorded.tensor(source), linear.output
    if output is None or output.shape != residual.shape:
        return None
    summed, block = (output + residual).detach(), recorded.block_of[linear.module]
    for call in recorded.calls:
        if recorded.block_of.get(call.module) != block or not is_norm(call.module):
            continue
        given = next((tensor.detach() for tensor in call.inputs.values()), None)
        if given is None or given.shape != summed.shape:
            continue
        if torch.allclose(given, summed, atol=1e-6):
            path = recorded.names[_dropout_after(recorded, linear) or linear.module]
            return PostNorm(path, recorded.names[call.module], source)
    return None


def _dropout_after(recorded: RecordedModel, linear: Call) -> nn.Module | None:
    """The dropout that reads the output of ``linear``."""
    for call in recorded.calls:
        if "Dropout" in type(call.module).__name__ and call.inputs.get(0) is linear.output:
            return call.module
    return None
