"""Merging: the base's own weights take in what its submodules have learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_pelt.attach.attachment import Attachment, attachment_of
from lightning_pelt.methods.submodule import WeightUpdate


def merge(model: nn.Module) -> PreTrainedModel:
    """Add the updates of an attached model to its weights and remove the submodules.

    A method can be merged where it is ungated and its effect equals a change of weights, such as
    LoRA's.

    Raises:
        ValueError: a method cannot be merged, a gate depends on the input, or a weight is
            quantised. The model is then as it was.

    Example:
        >>> from lightning_pelt import LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> attachment = attach(model, Plan.uniform(LoRA()))
        >>> merge(model) is model
        True
    """
    attachment = attachment_of(model)
    _refuse_unmergeable(attachment)
    root = attachment.model
    updates = [
        (root.get_submodule(update.path), update)
        for module in attachment.all_submodules
        for update in module.weight_updates()
    ]
    for host, update in updates:
        _refuse_quantised(host, update)
    with torch.no_grad():
        for host, update in updates:
            _add(host, update)
    attachment.detach(keep_norms=True)  # what norms have learned is merged as well
    return root


def _refuse_unmergeable(attachment: Attachment) -> None:
    for method in attachment.plan.methods:
        if not method.mergeable:
            raise ValueError(
                f"{type(method).__name__} cannot be merged into the weights: its effect is not a "
                "change of weights. Serve the model with its adapters, or train a plan of LoRA "
                "alone"
            )
        if method.gate is not None:
            raise ValueError(
                f"{method.name!r} is gated: its contribution differs from input to input, so no "
                f"weight can stand for it. Serve it unmerged, or train "
                f"{type(method).__name__}(gate=None)"
            )


def _refuse_quantised(host: Any, update: WeightUpdate) -> None:
    if not host.weight.is_floating_point():
        raise ValueError(
            f"{update.path} is quantised ({host.weight.dtype}): no update can be merged into it"
        )


def _add(host: Any, update: WeightUpdate) -> None:
    weight = host.weight.T if isinstance(host, Conv1D) else host.weight  # (d_out, d_in)
    delta = update.delta.to(weight.dtype)
    if update.rows is None:
        weight.add_(delta)
    else:
        weight.index_add_(0, update.rows, delta)
