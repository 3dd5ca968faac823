"""Checks every tensor of a checkpoint before the first one is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def refuse_unfit(given: Mapping[str, Any], here: Mapping[str, Tensor]) -> None:
    """Compare tensors of a checkpoint with those that they replace. Floats may have any precision.

    Args:
        given: of the checkpoint, by name.
        here: of the model, by name.

    Raises:
        RuntimeError: a tensor has another shape or dtype, or contains NaN or infinity.
    """
    for name, tensor in given.items():
        own = here.get(name)
        if own is None:
            continue
        if not isinstance(tensor, Tensor):
            raise RuntimeError(f"{name} is a {type(tensor).__name__}, expected a tensor")
        if own.shape != tensor.shape:
            raise RuntimeError(
                f"size mismatch: {name} is {tuple(tensor.shape)} there and {tuple(own.shape)} "
                "here; the backbone, the head (number of labels), the vocabulary "
                "(resize_token_embeddings) or options of the plan differ"
            )
        floats = own.is_floating_point() and tensor.dtype in FLOATS
        if not floats and own.dtype != tensor.dtype:
            raise RuntimeError(
                f"{name} has the dtype {tensor.dtype}, expected {own.dtype}: the file is damaged, "
                "or another program wrote it"
            )
        if floats and not _is_finite(tensor):
            raise RuntimeError(
                f"{name} contains NaN or infinity: the run that saved it had diverged. Load an "
                "earlier checkpoint"
            )


def _is_finite(tensor: Tensor) -> bool:
    """True for sharded tensors and those without values, which no process can judge."""
    ordinary = type(tensor.detach()) is Tensor and not tensor.is_meta
    return not ordinary or bool(tensor.isfinite().all())
