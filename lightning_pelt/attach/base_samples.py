"""Samples of the frozen base, which tell whether something has changed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

VALUES = 16  # of each tensor


@dataclass
class BaseSamples:
    """A few values of every tensor of the base, as they were when the plan was attached.

    An optimizer moves all values of a tensor. An embedding whose unused rows do not move may escape
    if it is frozen again.

    Args:
        values: up to 16 values in fp32, by name.
        shapes: of the tensors, by name.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    shapes: dict[str, torch.Size] = field(default_factory=dict)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> BaseSamples:
        """Samples of those tensors that are neither quantised nor sharded."""
        usable = {name: tensor for name, tensor in tensors.items() if _is_usable(tensor)}
        return cls(_read(usable), {name: tensor.shape for name, tensor in usable.items()})

    def changed(self, tensors: Mapping[str, Tensor]) -> set[str]:
        """Names of the tensors with other values or another shape. Rounding is not a change."""
        usable = {n: t for n, t in tensors.items() if n in self.values and _is_usable(t)}
        same = {n: t for n, t in usable.items() if t.shape == self.shapes[n]}
        # A shard of a data-parallel strategy has another number of dimensions.
        resized = {n for n, t in usable.items() if n not in same and t.dim() == len(self.shapes[n])}
        now = _read(same)
        return resized | {n for n in now if not _equal(now[n], self.values[n], same[n].dtype)}


def _is_usable(tensor: Tensor) -> bool:
    plain = type(tensor.data) is Tensor and not tensor.is_meta
    return plain and tensor.numel() > 0 and not tensor.is_complex()


def _read(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Samples on the CPU, with one transfer per device."""
    found: dict[str, Tensor] = {}
    for device in {tensor.device for tensor in tensors.values()}:
        here = {n: _spread(t.detach()) for n, t in tensors.items() if t.device == device}
        values = torch.cat(list(here.values())).cpu()
        found |= dict(zip(here, values.split([len(v) for v in here.values()]), strict=True))
    return found


def _spread(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1)[:: max(1, tensor.numel() // VALUES)][:VALUES].float()


def _equal(now: Tensor, before: Tensor, dtype: torch.dtype) -> bool:
    """Whether they are equal, or were before a conversion to the dtype or through a half one."""
    through = (dtype, torch.bfloat16, torch.float16)
    return any(torch.equal(now, before.to(kind).to(dtype).float()) for kind in through)
