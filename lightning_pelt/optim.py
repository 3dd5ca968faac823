"""Named parameter groups, one per method, and the learning-rate curve over them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_pelt.errors import unknown
from lightning_pelt.ownership import plain

if TYPE_CHECKING:
    from lightning_pelt.attach import Attachment

# Decay pulls towards zero, which for these means half open, no bias, a silenced activation, no
# norm, a Kronecker rule that silences everything, and masks that choose at random.
NO_DECAY = frozenset({"gate", "bitfit", "ia3", "norm", "compacter", "xpeft"})
# What Adam and its kin keep of each parameter: a count of steps, and averages.
ZERO_AT_FIRST = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"}


def named_groups(
    attachment: Attachment,
    *,
    lr: float,
    lrs: Mapping[str, float] | None = None,
    weight_decay: float = 0.0,
    no_decay: Collection[str] = NO_DECAY,
) -> list[dict[str, Any]]:
    """One optimizer group per method, and one each for the gates and the head.

    All groups are there from the start and keep their order, so that a run can be resumed; the
    ``"name"`` of a group is what ``LearningRateMonitor`` shows.

    Args:
        attachment: What was attached; its ``parameter_groups()`` are taken as they are.
        lr: Learning rate of every group that ``lrs`` does not name.
        lrs: Learning rates by group: a method's name, ``"gate"`` or ``"head"``.
        weight_decay: Of every group that is not in ``no_decay``.
        no_decay: Groups that keep weight decay 0; names that are not there are ignored.

    Raises:
        ValueError: ``lrs`` names a group that is not there, or no group has a parameter.
    """
    groups = attachment.parameter_groups()
    if not groups:
        raise ValueError("nothing to train: the plan attached no parameter and there is no head")
    rates = dict(lrs or {})
    for name in rates:
        if name not in groups:
            raise unknown("parameter group", name, groups)
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
    """Change optimizers' states such that they resume under any strategy.

    Names take the place of the numbers of parameters. A number is a place in the optimizer's
    groups, except under FSDP2, where Lightning reads it as a place in the whole model, frozen
    parameters included; a name is understood by both. And parameters that have not moved yet,
    because a schedule holds them, get the zeros that Adam starts from: FSDP2 would give them a
    first step.

    Args:
        states: of ``optimizers``, changed in place. Empty ones stay empty.
        optimizers: all over parameters of ``module``.
        module: gives the names.
    """
    names = {parameter: plain(name) for name, parameter in module.named_parameters()}
    for state, optimizer in zip(states, optimizers, strict=False):
        if not state:
            continue
        groups = [group["params"] for group in optimizer.param_groups]
        numbered = [parameter for group in groups for parameter in group]
        sharded = any(isinstance(parameter, DTensor) for parameter in numbered)
        places = list(names) if sharded else numbered
        for saved, group in zip(state["param_groups"], groups, strict=True):
            saved["params"] = [names[parameter] for parameter in group]
        state["state"] = {
            names[places[key]] if isinstance(key, int) else key: value
            for key, value in state["state"].items()
        }
        for parameter in numbered:
            _start_from_zero(state["state"], names[parameter], parameter)


def _start_from_zero(state: dict[str, dict[str, Any]], name: str, parameter: Tensor) -> None:
    like = next(iter(state.values()), {})
    if name not in state and like and like.keys() <= ZERO_AT_FIRST:
        state[name] = {key: _zeros(value, parameter) for key, value in like.items()}


def _zeros(like: Tensor, parameter: Tensor) -> Tensor:
    """Zeros shaped as ``parameter``, or as ``like`` where that is a mere counter."""
    if like.dim() == 0:
        return torch.zeros_like(like)
    if isinstance(like, DTensor):
        return torch.zeros_like(parameter, dtype=like.dtype, device=like.device)
    return like.new_zeros(parameter.shape)


def linear_warmup_decay(
    optimizer: Optimizer, *, warmup: float | int = 0, total_steps: float | int
) -> LambdaLR:
    """From 0 up to each group's learning rate, then down to 0 at ``total_steps``, both linearly.

    Step it once per optimizer step. Its state holds no curve: a resumed run that is made longer
    follows the new curve rather than staying at the old end.

    Args:
        optimizer: Its groups keep their own rates; all share the curve.
        warmup: A whole number of steps, or a share of ``total_steps`` below 1.
        total_steps: Such as ``trainer.estimated_stepping_batches``.

    Raises:
        ValueError: ``total_steps`` is not finite, or ``warmup`` is negative or a fraction above 1.
    """
    if not isfinite(total_steps) or total_steps < 0:
        raise ValueError(
            f"the decay needs to know where it ends, but total_steps is {total_steps}: "
            "set max_steps or max_epochs"
        )
    if warmup < 0 or (warmup > 1 and warmup != int(warmup)):
        raise ValueError(
            f"warmup must be a whole number of steps or a share of them below 1, not {warmup}"
        )
    steps = warmup * total_steps if warmup < 1 else warmup
    # A partial of a function pickles, and LambdaLR puts only instance dictionaries in its state.
    return LambdaLR(optimizer, partial(factor, warmup=round(steps), total=int(total_steps)))


def factor(step: int, *, warmup: int, total: int) -> float:
    """Share of the peak rate at ``step``, counted from 0; never negative."""
    if step < warmup:
        return step / warmup
    return max(0.0, (total - step) / max(1, total - warmup))
