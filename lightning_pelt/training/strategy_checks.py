"""Strategies that would train a plan wrongly are refused before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
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


def check_copies(trainer: Trainer) -> None:
    """Check that processes that split the weights of layers have equal copies of the trained ones.

    Raises:
        ValueError: they have not, such as a head that each has drawn from its own seed.
    """
    if tensor_ranks(trainer) == 1:
        return
    named = trainer.lightning_module.named_parameters()
    trained = {name: parameter for name, parameter in named if parameter.requires_grad}
    sums = torch.stack([_local(parameter).double().sum() for parameter in trained.values()])
    every = [torch.empty_like(sums) for _ in range(tensor_ranks(trainer))]
    mesh = trainer.strategy.device_mesh["tensor_parallel"]  # type: ignore[attr-defined]
    distributed.all_gather(every, sums, group=mesh.get_group())
    differ = torch.stack(every).ne(sums).any(0).tolist()
    if names := [name for name, other in zip(trained, differ, strict=True) if other]:
        raise ValueError(
            f"processes that split the base have other values of {names[0]} and of "
            f"{len(names) - 1} other trained parameters, and would train different models: call "
            "seed_everything before the module is made"
        )


def _local(parameter: Tensor) -> Tensor:
    whole = parameter.detach()
    return whole.to_local() if isinstance(whole, DTensor) else whole


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
