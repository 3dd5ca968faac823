"""What one site gets from a file."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """What one site gets.

    Attributes:
        settings: of its method; equal ones share a method.
        tensors: A (r, d_in) and B (d_out, r), a vector (d,), or a prompt (length, width).
        on_input: whether the vector scales the input of the layer.
    """

    settings: Hashable
    tensors: tuple[Tensor, ...]
    on_input: bool = False
