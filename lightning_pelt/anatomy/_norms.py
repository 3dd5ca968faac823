"""Norms: which modules are norms, and which of them follow a sublayer (post-norm)."""

from __future__ import annotations

import torch
from torch import nn

from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy.calls import Call
from lightning_pelt.anatomy.sites import PostNorm, Source


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm with a weight vector, such as LayerNorm or RMSNorm."""
    if "Norm" not in type(module).__name__ or any(True for _ in module.children()):
        return False
    weight = getattr(module, "weight", None)
    return weight is not None and weight.dim() == 1


def find_post_norm(
    recorded: RecordedModel, path: str, linear: Call, source: Source
) -> PostNorm | None:
    """The norm whose input is the output of ``linear`` plus the sublayer's input ``source``.

    Args:
        recorded: the model.
        path: of the block.
        linear: the sublayer's last call.
        source: what the sublayer reads.
    """
    residual, output = recorded.tensor(source), linear.output
    if output is None or output.shape != residual.shape:
        return None
    summed = (output + residual).detach()
    for call in recorded.called(path):
        if not is_norm(call.module):
            continue
        given = next((tensor.detach() for tensor in call.inputs.values()), None)
        # OPT computes on rows of tokens, (B T, d), between norms that read (B, T, d).
        if (
            given is None
            or given.shape[-1:] != summed.shape[-1:]
            or given.numel() != summed.numel()
        ):
            continue
        if torch.allclose(given.reshape(summed.shape), summed, atol=1e-6):
            host = recorded.names[dropout_after(recorded, path, linear) or linear.module]
            return PostNorm(host, recorded.names[call.module], source)
    return None


def dropout_after(recorded: RecordedModel, path: str, linear: Call) -> nn.Module | None:
    """The dropout that reads the output of ``linear``.

    None if the block at ``path`` uses it elsewhere too (ViT, Phi, X-MOD).
    """
    for call in recorded.calls:
        if "Dropout" in type(call.module).__name__ and call.inputs.get(0) is linear.output:
            return None if recorded.repeats(call.module, path) else call.module
    return None
