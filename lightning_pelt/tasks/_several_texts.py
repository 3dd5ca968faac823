"""Shared by the tasks with several texts per row: one forward over the texts of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_pelt.data._several_texts import PRESENT, TOKENS
from lightning_pelt.tasks.base import Batch, model_inputs


def present(batch: Batch) -> Tensor:
    """Which texts of a batch (B, n, T) a row has, (B, n); all if the batch does not say."""
    found = batch.get(PRESENT)
    if isinstance(found, Tensor):
        return found.bool()
    ids = batch["input_ids"]
    return torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device)


def flat_inputs(batch: Batch, *, besides: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The inputs of the model for the texts of a batch, one text a row, (N, T).

    Tokens (B, n, T) become (N, T) for the N texts that rows have. A model input with one value per
    row, such as a profile, is repeated for the texts of the row.

    Args:
        batch: with ``present`` (B, n), unless rows have all texts.
        besides: names of entries that are no inputs of the model.
    """
    chosen = present(batch)
    row = chosen.nonzero()[:, 0]
    return {
        name: value[chosen] if name in TOKENS else value[row]
        for name, value in model_inputs(batch).items()
        if name not in (PRESENT, *besides)
    }


def unflatten(values: Tensor, chosen: Tensor, fill: float) -> Tensor:
    """Values of the texts (N, ...) at their places, (B, n, ...), and ``fill`` where there is none.

    Args:
        values: of the texts that rows have.
        chosen: which those are, (B, n).
        fill: value of the others.
    """
    whole = values.new_full((*chosen.shape, *values.shape[1:]), fill)
    return whole.masked_scatter(chosen.view(*chosen.shape, *[1] * (values.dim() - 1)), values)
