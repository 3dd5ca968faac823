"""A resumed run has its own options: a checkpoint restores weights, averages and a position.

Lightning restores learning rates and other options together with the state of the optimizer, so
that a rate given for the resumed run would have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

KIND = "optimizer"  # the entry of a parameter group that names the optimizer's class
# Hyperparameters that a resumed run may change.
FREE = (
    "lr",
    "lrs",
    "weight_decay",
    "warmup",
    "base_dropout",
    "checkpoint_activations",
    "compile",
    "dtype",
)


class OwnSchedule(LambdaLR):
    """A ``LambdaLR`` that restores its position from a checkpoint, and no rates.

    Args:
        optimizer: whose groups are scheduled.
        factors: of the initial learning rates, by step; one for each group.
    """

    def __init__(self, optimizer: Optimizer, factors: Sequence[Callable[[int], float]]) -> None:
        super().__init__(optimizer, list(factors))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the saved position, and set the rates of this run at that position."""
        super().load_state_dict({**state_dict, "base_lrs": self.base_lrs})
        self._last_lr = [
            base * factor(self.last_epoch)
            for base, factor in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


class OwnGroupOptions:
    """A hook on the loading of an optimizer's state: its groups keep the options they have now.

    Args:
        optimizer: with its schedule, if it has one.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> saved = torch.optim.AdamW([weight], lr=1e-3).state_dict()
        >>> resumed = torch.optim.AdamW([weight], lr=1e-7, betas=(0.8, 0.9))
        >>> keep = OwnGroupOptions(resumed)
        >>> resumed.load_state_dict(saved)
        >>> resumed.param_groups[0]["lr"], resumed.param_groups[0]["betas"]
        (1e-07, (0.8, 0.9))
    """

    def __init__(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            group[KIND] = type(optimizer).__name__
        self.options = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        optimizer.register_load_state_dict_pre_hook(self)

    def __call__(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any] | None:
        saved = state["param_groups"]
        if len(saved) != len(self.options):
            return None  # torch refuses it
        groups = [
            {**own, "params": group["params"]}
            for own, group in zip(self.options, saved, strict=True)
        ]
        kinds = {group.get(KIND) for group in saved} - {None, type(optimizer).__name__}
        if not kinds:
            return {**state, "param_groups": groups}
        rank_zero_warn(
            f"the checkpoint's optimizer is {' and '.join(sorted(map(str, kinds)))}, and this run "
            f"has {type(optimizer).__name__}, which starts without the averages of the other"
        )
        return {"state": {}, "param_groups": groups}


def keep_own_options(
    trainer: Trainer,
    checkpoint: dict[str, Any],
    *,
    saved: Mapping[str, Any],
    own: Mapping[str, Any],
) -> None:
    """Refuse a checkpoint of another head, and print which options of a fit are not its own.

    Args:
        trainer: that loads the checkpoint. Its callbacks that stop a run keep their patience.
        checkpoint: changed in place.
        saved: hyperparameters of the checkpoint.
        own: hyperparameters of the module.

    Raises:
        ValueError: the checkpoint was trained on other labels, or for another kind of task.
    """
    _refuse_other_head(saved, own)
    if trainer.state.fn != TrainerFn.FITTING:
        return
    _keep_patience(trainer, checkpoint)
    changes = [
        f"{name} is {own[name]} (checkpoint: {saved[name]})"
        for name in FREE
        if name in saved and saved[name] != own[name]
    ]
    if changes:
        rank_zero_info(f"This run has other options than its checkpoint: {', '.join(changes)}")


def _refuse_other_head(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise if the weights of the head would mean something else."""
    tasks = [(each.get("task") or {}).get("class_path", "") for each in (saved, own)]
    then, now = (task.rpartition(".")[2] for task in tasks)
    if then and then != now:
        raise ValueError(
            f"the checkpoint was trained for the task {then}, and the module has {now}: use the "
            "task of the checkpoint, or start without it"
        )
    labels = saved.get("labels", own["labels"])
    if labels != own["labels"]:
        raise ValueError(
            f"the checkpoint was trained on the labels {labels}, and the module has "
            f"{own['labels']}: use the labels of the checkpoint, in their order"
        )


def _keep_patience(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    states = checkpoint.get("callbacks", {})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = states.get(callback.state_key)
        if isinstance(callback, EarlyStopping) and state and "patience" in state:
            state["patience"] = callback.patience
