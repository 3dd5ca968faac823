"""Numbers to fill inputs with."""

from __future__ import annotations

import torch
from torch import Tensor


def noise(*shape: int) -> Tensor:
    """Standard normal numbers of a fixed seed."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0))


def ones(*shape: int) -> Tensor:
    """A mask of which all is real."""
    return torch.ones(shape, dtype=torch.long)
