"""Which processes have which batches: those that split the weights of a layer share theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_pelt.utils.same_kind import same_kind

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def data_rank(trainer: Trainer) -> int:
    """The number of the batches of this process among those of the others."""
    return trainer.global_rank // tensor_ranks(trainer)


def data_ranks(trainer: Trainer) -> int:
    """How many processes have batches that differ."""
    return trainer.world_size // tensor_ranks(trainer)


def tensor_rank(trainer: Trainer) -> int:
    """The number of this process among those with the same batches."""
    return trainer.global_rank % tensor_ranks(trainer)


def tensor_ranks(trainer: Trainer) -> int:
    """How many processes have the same batches, and split the weights of each layer."""
    if not same_kind(trainer.strategy, ModelParallelStrategy):
        return 1
    # A mesh lists ranks row by row, and tensor_parallel is its last dimension.
    return int(trainer.strategy.device_mesh["tensor_parallel"].size())  # type: ignore[attr-defined]
