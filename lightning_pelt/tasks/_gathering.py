"""Rows of all processes, with gradients: for losses that compare the rows of a batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gathers() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_sizes(*own: int, device: torch.device) -> Tensor:
    """The numbers that each process gives, (W, numbers), on the CPU."""
    here = torch.tensor(own, device=device)
    each = [torch.empty_like(here) for _ in range(dist.get_world_size())]
    dist.all_gather(each, here)
    return torch.stack(each).cpu()


def all_rows(part: Tensor, sizes: list[int]) -> Tensor:
    """The rows of all processes in turn. Collectives need equal shapes, so they are padded.

    If the losses of all processes are averaged, as DDP averages gradients, the gradients are those
    of one process with all rows.

    Args:
        part: of this process, (rows, ...).
        sizes: number of rows of each process.
    """
    if not max(sizes):
        return part
    padding = max(sizes) - len(part)
    padded = torch.cat([part, part.new_zeros(padding, *part.shape[1:])])
    every = _AllGather.apply(padded)
    return torch.cat([rows[:size] for rows, size in zip(every, sizes, strict=True)])


class _AllGather(torch.autograd.Function):
    """Gathers a tensor of all processes, (W, ...); its gradient is summed over their losses."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        every = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(every, part.contiguous())
        return torch.stack(every)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]
