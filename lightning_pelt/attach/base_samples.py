"""Samples of the frozen base, which tell whether something has changed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_pelt.utils.shards import is_shard

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
        shapes = {name: tensor.shape for name, tensor in usable.items()}
        return cls(_read(usable, shapes), shapes)

    def changed(self, tensors: Mapping[str, Tensor]) -> set[str]:
        """Names of the tensors with other values, or with another shape than by resized rows.

        Rounding is not a change. Of resized tensors, the rows that there were count.
        """
        usable = self._usable(tensors)
        same = {n: t for n, t in usable.items() if _row(t.shape) == _row(self.shapes[n])}
        now = _read(same, self.shapes)
        kinds = {n: t.dtype for n, t in usable.items()}
        moved = {n for n in now if not _equal(now[n], self.values[n][: len(now[n])], kinds[n])}
        return moved | usable.keys() - same.keys()

    def resized(self, tensors: Mapping[str, Tensor]) -> set[str]:
        """Names of the tensors with more or fewer rows, as by ``resize_token_embeddings``."""
        return {
            name
            for name, tensor in self._usable(tensors).items()
            if tensor.shape != self.shapes[name] and _row(tensor.shape) == _row(self.shapes[name])
        }

    def _usable(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # What a process holds of a tensor may have another number of dimensions.
        return {
            name: tensor
            for name, tensor in tensors.items()
            if name in self.values and _is_usable(tensor) and tensor.dim() == len(self.shapes[name])
        }


def _is_usable(tensor: Tensor) -> bool:
    plain = type(tensor.data) is Tensor and not tensor.is_meta
    return plain and not is_shard(tensor) and tensor.numel() > 0 and not tensor.is_complex()


def _row(shape: torch.Size) -> tuple[int, ...]:
    """Shape of a row; BART's bias of (1, V) has V rows."""
    first = next((i for i, size in enumerate(shape) if size > 1), len(shape) - 1)
    return tuple(shape[first + 1 :])


def _read(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Samples on the CPU, with one transfer per device, at places that follow from ``shapes``."""
    found: dict[str, Tensor] = {}
    for device in {tensor.device for tensor in tensors.values()}:
        here = {
            name: _spread(tensor.detach(), shapes[name])
            for name, tensor in tensors.items()
            if tensor.device == device
        }
        values = torch.cat(list(here.values())).cpu()
        found |= dict(zip(here, values.split([len(v) for v in here.values()]), strict=True))
    return found


def _spread(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Values at places of a tensor of ``shape``; fewer if ``tensor`` has fewer rows."""
    total = shape.numel()
    return tensor.reshape(-1)[:total][:: max(1, total // VALUES)][:VALUES].float()


def _equal(now: Tensor, before: Tensor, dtype: torch.dtype) -> bool:
    """Whether they are equal, or were before a conversion to the dtype or through a half one."""
    through = (dtype, torch.bfloat16, torch.float16)
    return any(torch.equal(now, before.to(kind).to(dtype).float()) for kind in through)
