"""Forward passes over rows that consist of windows."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lightning_pelt.data._window_batch import NOT_INPUTS, WINDOWS_AT_ONCE
from lightning_pelt.tasks.base import Batch


def window_inputs(batch: Batch) -> dict[str, Tensor]:
    """The arguments of the model's ``forward``."""
    return {k: v for k, v in batch.items() if k not in NOT_INPUTS and isinstance(v, Tensor)}


def forward(model: PreTrainedModel, batch: Batch, names: Sequence[str]) -> Any:
    """The outputs of the model for all windows of a batch.

    In evaluation the number of windows has no limit, so the model takes ``windows_at_once`` of them
    at a time.

    Args:
        model: the model.
        batch: as :class:`~lightning_pelt.data._window_batch.CollateWindows` makes it.
        names: the outputs to keep, each (W, ...).
    """
    inputs = window_inputs(batch)
    count = len(batch["input_ids"])
    size = batch.get(WINDOWS_AT_ONCE, count)
    passes = -(-count // size)
    most = _most_passes(passes, batch["input_ids"].device) if _is_sharded(model) else passes
    if most == 1:
        return model(**inputs)
    parts = []
    for number in range(most):
        start = min(number, passes - 1) * size  # a rank with fewer passes repeats its last one
        outputs = model(**{name: value[start : start + size] for name, value in inputs.items()})
        parts.append([getattr(outputs, name) for name in names])
    return SimpleNamespace(
        **{name: torch.cat(part) for name, *part in zip(names, *parts[:passes], strict=True)}
    )


def _is_sharded(model: PreTrainedModel) -> bool:
    return isinstance(model, FSDPModule)


def _most_passes(passes: int, device: torch.device) -> int:
    """The most passes of any rank: sharded ranks gather weights together, in every pass."""
    most = torch.tensor(passes, device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)
