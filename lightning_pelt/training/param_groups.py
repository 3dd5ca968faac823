"""Named parameter groups, one per method, their optimizer state, and the steps of warmup."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_pelt.attach import NORM
from lightning_pelt.attach.names import plain
from lightning_pelt.utils.errors import unknown
from lightning_pelt.utils.shards import is_flat, is_shard

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from lightning_pelt.attach import Attachment

# Weight decay pulls towards zero: at zero a gate is half open, and a norm outputs nothing. Each
# method declares in `weight_decay` whether decay applies to its weights.
NO_DECAY = frozenset({"gate", NORM})
OUTSIDE = "outside the module/"  # begins the name of a parameter that the module does not hold
# The state of Adam and its variants: a count of steps, and averages.
ZERO_AT_FIRST = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"}


def named_groups(
    attachment: Attachment,
    *,
    lr: float,
    lrs: Mapping[str, float] | None = None,
    weight_decay: float = 0.0,
    no_decay: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """One optimizer group per method, and one each for the gates and the head.

    All groups exist from the start and keep their order, so that a run can be resumed.
    ``LearningRateMonitor`` logs each group by its ``"name"``.

    Args:
        attachment: of the model; the groups are its ``parameter_groups()``.
        lr: learning rate of every group that ``lrs`` does not name.
        lrs: learning rates by group: a method's name, ``"gate"`` or ``"head"``.
        weight_decay: of every group that is not in ``no_decay``.
        no_decay: names of the groups without weight decay. By default the gates, the norms, and the
            methods whose ``weight_decay`` is False. Unknown names are ignored.

    Raises:
        ValueError: ``lrs`` names an unknown group, a rate is negative or not finite, or there is no
            trainable parameter.

    Example:
        >>> from lightning_pelt import BitFit, LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attachment = attach(tiny_bert(), Plan.uniform(LoRA(r=2), BitFit()))
        >>> groups = named_groups(attachment, lr=1e-3, lrs={"lora": 5e-4}, weight_decay=0.1)
        >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
        [('lora', 0.0005, 0.1), ('bitfit', 0.001, 0.0), ('head', 0.001, 0.1)]
    """
    groups = attachment.parameter_groups()
    if not groups:
        raise ValueError(
            "nothing to train: the plan attaches no parameter and the model has no head"
        )
    if no_decay is None:
        no_decay = NO_DECAY | {m.name for m in attachment.plan.methods if not m.weight_decay}
    rates = dict(lrs or {})
    for name in rates:
        if name not in groups:
            raise unknown("parameter group", name, groups)
    for name, rate in {"lr": lr, "weight_decay": weight_decay, **rates}.items():
        if not (isfinite(rate) and rate >= 0):
            raise ValueError(f"{name} is {rate}, expected a finite number from 0 on")
    return [
        {
            "name": name,
            "params": parameters,
            "lr": rates.get(name, lr),
            "weight_decay": 0.0 if name in no_decay else weight_decay,
        }
        for name, parameters in groups.items()
    ]


def make_portable(
    states: Sequence[dict[str, Any]], optimizers: Sequence[Optimizer], module: nn.Module
) -> None:
    """Change the states of optimizers so that they resume under any strategy.

    Parameters are saved by name instead of by index. An index counts the parameters of the
    optimizer, but under FSDP Lightning counts those of the whole model, frozen ones included; both
    read names. Parameters that a schedule has held so far have no state yet. They get the zeros
    that Adam starts from, because FSDP2 would count a first step for them. Frozen parameters, which
    ``AdamW(self.parameters())`` holds as well, have no state and get none.

    Args:
        states: of ``optimizers``, changed in place. Empty states stay empty.
        optimizers: over parameters of ``module``, and others perhaps. These are numbered.
        module: the module whose parameter names are used.
    """
    for state, optimizer in zip(states, optimizers, strict=False):
        if not state:
            continue
        groups = [group["params"] for group in optimizer.param_groups]
        held = [parameter for group in groups for parameter in group]
        known = {parameter: plain(name) for name, parameter in module.named_parameters()}
        outside = [parameter for parameter in held if parameter not in known]
        names = known | {parameter: f"{OUTSIDE}{i}" for i, parameter in enumerate(outside)}
        flat = any(map(is_flat, held))  # of FSDP1, for which the zeros are there
        by_index = list(known) if any(map(is_shard, held)) else held
        for saved, group in zip(state["param_groups"], groups, strict=True):
            saved["params"] = [names[parameter] for parameter in group]
        state["state"] = {
            names[by_index[key]] if isinstance(key, int) else key: value
            for key, value in state["state"].items()
        }
        for parameter in held:
            if parameter.requires_grad and not flat:
                start_from_zero(state["state"], names[parameter], parameter)


def start_from_zero(state: dict[Any, dict[str, Any]], name: Any, parameter: Tensor) -> None:
    """Add Adam's first state of ``parameter`` to ``state`` as ``name``, unless it has one."""
    like = next(iter(state.values()), {})
    if name not in state and like and like.keys() <= ZERO_AT_FIRST:
        state[name] = {key: _zeros(value, parameter) for key, value in like.items()}


def _zeros(like: Tensor, parameter: Tensor) -> Tensor:
    """Zeros of the shape of ``parameter``, or a scalar zero if ``like`` is a count of steps."""
    if like.dim() == 0:
        return torch.zeros_like(like)
    if isinstance(like, DTensor):
        return torch.zeros_like(parameter, dtype=like.dtype, device=like.device)
    return like.new_zeros(parameter.shape)


def total_steps(trainer: Trainer) -> int | float:
    """Number of steps of a fit; with ``limit_train_batches=0`` none, and a warning says so."""
    if trainer.limit_train_batches == 0:
        rank_zero_warn("limit_train_batches is 0, so nothing is trained")
        return 0
    return trainer.estimated_stepping_batches


def schedule_steps(warmup: float | int, total_steps: float | int) -> tuple[int, int]:
    """The numbers of warmup steps and of all steps, for transformers' linear schedule.

    Args:
        warmup: a whole number of steps, or a share of ``total_steps`` below 1.
        total_steps: such as ``trainer.estimated_stepping_batches``.

    Raises:
        ValueError: ``total_steps`` is not finite, or ``warmup`` is negative or a fraction above 1.

    Example:
        >>> schedule_steps(0.1, 500)
        (50, 500)
        >>> schedule_steps(20, 500)
        (20, 500)
    """
    if not isfinite(total_steps) or total_steps < 0:
        raise ValueError(
            f"total_steps is {total_steps}, but the learning rate decays to 0 at the last step: "
            "set max_steps or max_epochs"
        )
    if warmup < 0 or (warmup > 1 and warmup != int(warmup)):
        raise ValueError(
            f"warmup must be a whole number of steps or a share of them below 1, not {warmup}"
        )
    steps = warmup * total_steps if warmup < 1 else warmup
    return round(steps), int(total_steps)
