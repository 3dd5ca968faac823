"""What a layer of gates leaves for its submodules in one forward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_pelt.methods.current import recording


class GateValues(NamedTuple):
    """The gates of a layer in one forward.

    Attributes:
        each: (B, 1, 1) or (B, T, 1) of every gate; None where ``numbers`` are read.
        whole: (B, 1, n) or (B, T, n).
        numbers: of every gate, if a gate is one number.
    """

    each: tuple[Tensor, ...] | None
    whole: Tensor
    numbers: list[float] | None

    @classmethod
    def of(cls, gates: Tensor, count: int) -> GateValues:
        """Those in the last dimension of ``gates``, of size ``count``."""
        if is_free_to_read(gates) and gates.numel() == count and gates.dim() in (1, 3):
            numbers: Any = gates.tolist()
            for _ in range(1, gates.dim()):
                (numbers,) = numbers
            return cls(None, gates, numbers)
        return cls((gates,) if count == 1 else gates.chunk(count, -1), gates, None)


def is_free_to_read(tensor: Tensor) -> bool:
    """Whether Python may read the numbers of ``tensor`` without a loss."""
    if torch.is_grad_enabled() or not tensor.is_cpu or type(tensor) is not Tensor or recording():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
