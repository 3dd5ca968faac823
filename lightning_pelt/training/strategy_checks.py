"""Strategies that would train a plan wrongly are refused before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_pelt.utils.same_kind import same_kind

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_pelt.attach import Attachment
    from lightning_pelt.methods.base import Method


def check_strategy(trainer: Trainer, attachment: Attachment) -> None:
    """Check that the strategy of a fit leaves out the weights that no row of a batch names.

    Raises:
        ValueError: it needs a gradient of all of them.
    """
    strategy = trainer.strategy
    for method in attachment.plan.methods:
        if not method.trained_by_rows:
            continue
        if isinstance(strategy.model, DistributedDataParallel):
            _check_ddp(strategy.model, method)
        elif same_kind(strategy, FSDPStrategy, DeepSpeedStrategy):
            raise ValueError(
                f"{_what(method)}, and {type(strategy).__name__} gives the others a gradient of "
                "zero, with which momentum moves them: use "
                "strategy='ddp_find_unused_parameters_true' or ModelParallelStrategy (FSDP2)"
            )


def _check_ddp(model: DistributedDataParallel, method: Method) -> None:
    if not model.find_unused_parameters or model.static_graph:
        raise ValueError(
            f"{_what(method)}, and DDP waits for the gradients of all others: use "
            "strategy='ddp_find_unused_parameters_true', without static_graph"
        )


def _what(method: Method) -> str:
    return f"{method.name} trains only the profiles in each batch"
