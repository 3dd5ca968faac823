"""Which profiles the other processes of a sharded run train in the same step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Ranks:
    """The processes that add up the gradients of the same profiles.

    Sharded data parallelism adds up the gradients that a process has, one after another. All
    processes must therefore have gradients of the same profiles. Copies and pickles know no other
    process.
    """

    def __init__(self) -> None:
        self.groups: Sequence[ProcessGroup] = ()

    def elsewhere(self, numbers: Sequence[int], count: int, device: torch.device) -> list[int]:
        """Profiles of the others' batches that this one lacks; all processes have to ask.

        Args:
            numbers: the profiles of this process's batch.
            count: number of profiles of the plan.
            device: one that the processes can send from.
        """
        if not self.groups or not torch.is_grad_enabled():
            return []
        present = torch.zeros(count, dtype=torch.int32, device=device)
        present[list(numbers)] = 1
        for group in self.groups:
            distributed.all_reduce(present, distributed.ReduceOp.MAX, group)
        present[list(numbers)] = 0
        return torch.nonzero(present).flatten().tolist()

    def check(self, model: nn.Module) -> None:
        """Check a model before a training step.

        Raises:
            RuntimeError: it is sharded, and its submodules do not know over which processes.
        """
        if isinstance(model, FSDPModule) and not self.groups:
            raise RuntimeError(
                f"{type(model).__name__} is sharded, and its profiles do not know over which "
                "processes: call attachment.train() after fully_shard and before the first step"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return Ranks, ()


def stack(parameters: nn.ParameterList, numbers: Sequence[int], elsewhere: Sequence[int]) -> Tensor:
    """The parameters of ``numbers`` (U, ...); those of ``elsewhere`` get a gradient of zero."""
    chosen = [parameters[number] for number in (*numbers, *elsewhere)]
    return torch.stack(chosen)[: len(numbers)]
