"""Parameters of which a process holds a part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributed.fsdp._common_utils import _is_fsdp_flattened
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def is_flat(parameter: Tensor) -> bool:
    """Whether FSDP1 holds a parameter in a flat one."""
    return _is_fsdp_flattened(parameter)


def is_shard(parameter: Tensor) -> bool:
    """Whether a strategy has sharded a parameter, with FSDP1, FSDP2 or tensor parallelism."""
    return isinstance(parameter, DTensor) or is_flat(parameter)


def groups_of(parameters: Iterable[Tensor]) -> list[ProcessGroup]:
    """The groups of processes that FSDP2 shards parameters over; hybrid sharding has two."""
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            return parameter.device_mesh.get_all_groups()
    return []
