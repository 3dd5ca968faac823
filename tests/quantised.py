"""Quantised bases and the same bases with ordinary layers, for tests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt import quantise
from lightning_pelt.attach.dequantising import ordinary
from lightning_pelt.attach.quantising import LIBRARIES
from lightning_pelt.utils.quantised import kind_of

KINDS = tuple(LIBRARIES)


def needs(kind: str) -> None:
    """Skip a test where the library of a kind is not installed."""
    pytest.importorskip(LIBRARIES[kind], reason=f"{kind} needs {LIBRARIES[kind]}")


def quantised(model: PreTrainedModel, kind: Any) -> PreTrainedModel:
    """``model`` quantised, or a skipped test."""
    needs(kind)
    return quantise(model, kind)


def layers(model: nn.Module) -> list[str]:
    """Paths of the layers with quantised weights."""
    return [
        path
        for path, module in model.named_modules()
        if any(kind_of(p) for p in module._parameters.values() if p is not None)
    ]


def dense(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` with ordinary layers that have the dequantised weights."""
    for path in layers(model):
        model.set_submodule(path, ordinary(model.get_submodule(path)))
    return model


@torch.no_grad()
def run(model: PreTrainedModel, rows: int = 2) -> Tensor:
    """Logits or hidden states of a few tokens."""
    tokens = torch.arange(3, 3 + 6 * rows).view(rows, 6)
    out = model(input_ids=tokens)
    return out[0].float()
