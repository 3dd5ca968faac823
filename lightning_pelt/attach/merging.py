"""Merging: the base's own weights take in what its submodules have learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_pelt.attach.attachment import Attachment, attachment_of
from lightning_pelt.attach.tensor_checks import FLOATS
from lightning_pelt.methods.submodule import WeightUpdate

PROBES = 4  # random inputs of a trial merge
ROUNDINGS = 32  # how often the outputs of a trial may be rounded
COARSEST = 2.0**-8  # relative rounding of products in fp32 where faster ones are allowed
REMEDY = (
    "Load the base in full precision and unsharded, then load_adapters and merge; or serve the "
    "model with its adapters"
)


def merge(model: nn.Module) -> PreTrainedModel:
    """Add the updates of an attached model to its weights and remove the submodules.

    A method can be merged where it is ungated and its effect equals a change of weights, such as
    LoRA's. A trial with random inputs first shows for every layer that its output follows its
    weight.

    Raises:
        ValueError: a method cannot be merged, a gate depends on the input, or a layer does not
            compute with an ordinary weight that is its own, for example because it is quantised,
            sharded or tied. The model is then as it was.

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
    by_host: dict[str, list[WeightUpdate]] = {}
    for module in attachment.all_submodules:
        for update in module.weight_updates():
            by_host.setdefault(update.path, []).append(update)
    with torch.no_grad():
        for path, updates in by_host.items():
            _refuse_other_weights(root, path)
            _try(root.get_submodule(path), path, updates)
        for path, updates in by_host.items():
            _add(root.get_submodule(path), updates)
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


def _refuse_other_weights(root: nn.Module, path: str) -> None:
    """Raise unless the layer's weight is an ordinary tensor that belongs to this layer alone."""
    host = root.get_submodule(path)
    weight = host._parameters.get("weight")
    if weight is None:
        raise ValueError(
            f"{path} ({type(host).__name__}) has no weight of its own: it is quantised, or "
            f"computed from other tensors. {REMEDY}"
        )
    kind = type(weight.detach())
    if kind is not Tensor or weight.dtype not in FLOATS or weight.is_meta:
        what = f"{weight.dtype}" if kind is Tensor else kind.__name__
        raise ValueError(
            f"{path} is quantised, sharded or offloaded (its weight is {what} on "
            f"{weight.device.type}): no update can be merged into it. {REMEDY}"
        )
    tied = [n for n, m in root.named_modules() if any(p is weight for p in m._parameters.values())]
    if len(tied) > 1:
        others = ", ".join(name for name in tied if name != path)
        raise ValueError(
            f"the weight of {path} is also that of {others}, which an update of it would change "
            "too. Untie them, or serve the model with its adapters"
        )


def _try(host: Any, path: str, updates: list[WeightUpdate]) -> None:
    """Add the updates for a trial, enlarged to the size of the weight, and measure the effect.

    Enlarged, they exceed the rounding of every dtype.

    Raises:
        ValueError: the layer's output does not change by the updates. The weight is as it was.
    """
    weight = host.weight
    original, wide = weight.clone(), torch.promote_types(weight.dtype, torch.float32)
    delta = torch.zeros_like(_oriented(host), dtype=wide)
    for update in updates:
        delta[slice(None) if update.rows is None else update.rows] += update.delta.to(wide)
    if not delta.isfinite().all():
        raise ValueError(f"the update of {path} contains NaN or infinity: the run had diverged")
    if not delta.any():
        return
    delta *= weight.to(wide).norm().clamp(min=torch.finfo(wide).tiny) / delta.norm()
    inputs = torch.randn(PROBES, delta.shape[1], generator=torch.Generator().manual_seed(0))
    inputs = inputs.to(weight.device, weight.dtype)
    try:
        with torch.autocast(weight.device.type, enabled=False):
            before = host.forward(inputs).to(wide)  # without hooks, so without the submodules
            _oriented(host).add_(delta.to(weight.dtype))
            change = host.forward(inputs).to(wide) - before
            expected = inputs.to(wide) @ delta.T
    except Exception as error:  # layers of other libraries raise many types
        raise ValueError(f"{path} ({type(host).__name__}) cannot be merged: {error}") from error
    finally:
        weight.copy_(original)
    exact = weight.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    rounding = max(torch.finfo(weight.dtype).eps, 0 if exact else COARSEST)
    size = inputs.to(wide).norm(dim=1).max() * delta.norm(dim=1).max()
    if not ((change - expected).abs() <= ROUNDINGS * rounding * size).all():
        raise ValueError(
            f"{path} ({type(host).__name__}) does not compute with its weight alone: a trial merge "
            f"changed its output by up to {change.abs().max():.3g}, expected "
            f"{expected.abs().max():.3g}. {REMEDY}"
        )


def _oriented(host: Any) -> Tensor:
    """The weight as (d_out, d_in)."""
    return host.weight.T if isinstance(host, Conv1D) else host.weight


def _add(host: Any, updates: list[WeightUpdate]) -> None:
    weight = _oriented(host)
    for update in updates:
        delta = update.delta.to(weight.dtype)
        if update.rows is None:
            weight.add_(delta)
        else:
            weight.index_add_(0, update.rows, delta)
