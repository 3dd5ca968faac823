"""Strategies that would train a plan wrongly are refused before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_pelt.methods.gate import GateLayer
from lightning_pelt.methods.submodule import Submodule
from lightning_pelt.training.ranks import tensor_ranks
from lightning_pelt.utils.same_kind import same_kind

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_pelt.attach import Attachment
    from lightning_pelt.methods.base import Method
    from lightning_pelt.tasks import Task


def check_strategy(trainer: Trainer, attachment: Attachment, task: Task | None = None) -> None:
    """Check that the strategy of a fit trains the plan as one process does.

    Raises:
        ValueError: it needs a gradient of weights that no row of a batch names; layers with
            submodules were split by other means than ``split_base``; or the loss compares the rows
            of processes that have the same ones.
    """
    strategy = trainer.strategy
    _check_split(attachment)
    if task is not None and task.compares_rows and (same := tensor_ranks(trainer)) > 1:
        raise ValueError(
            f"{type(task).__name__} compares the rows of all processes, and with tensor "
            f"parallelism {same} of them have the same rows: use "
            "ModelParallelStrategy(data_parallel_size=<processes>, tensor_parallel_size=1)"
        )
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


def _check_split(attachment: Attachment) -> None:
    """Refuse layers that torch has distributed together with the submodules that extend them.

    Sums over the processes would be missing in the gradients of some submodules, and others would
    mix whole tensors with shares.
    """
    for path, module in attachment.model.named_modules():
        # Set by torch.distributed.tensor.distribute_module, which parallelize_module calls.
        if getattr(module, "_distribute_module_applied", False):
            own = [part for part in module.modules() if isinstance(part, Submodule | GateLayer)]
            if own:
                raise ValueError(
                    f"parallelize_module has split {path}, which {type(own[0]).__name__} of the "
                    "plan extends: leave the layer out of its plan, or call "
                    "lightning_pelt.split_base(attachment, mesh['tensor_parallel']) in its place, "
                    "which splits the layers of the base and gives submodules whole tensors"
                )


def _check_ddp(model: DistributedDataParallel, method: Method) -> None:
    if not model.find_unused_parameters or model.static_graph:
        raise ValueError(
            f"{_what(method)}, and DDP waits for the gradients of all others: use "
            "strategy='ddp_find_unused_parameters_true', without static_graph"
        )


def _what(method: Method) -> str:
    return f"{method.name} trains only the profiles in each batch"
