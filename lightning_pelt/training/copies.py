"""Callbacks that copy a module before its model is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from lightning_pelt.utils.same_kind import same_kind

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer


def copy_again(trainer: Trainer, module: LightningModule) -> None:
    """Repeat ``setup`` of the callbacks whose copy of ``module`` lacks what it has by now.

    Callbacks that average weights copy the module in ``setup``, which precedes ``configure_model``.
    Their averages would be those of a module without submodules. Of other callbacks than
    Lightning's it is not known what ``setup`` does, so a warning names them.

    Args:
        trainer: that fits ``module``; otherwise nothing is done.
        module: after ``configure_model``.
    """
    if trainer.state.fn != TrainerFn.FITTING:
        return
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if not _is_outdated(callback, module):
            continue
        if same_kind(callback, StochasticWeightAveraging, WeightAveraging):
            callback.setup(trainer, module, stage="fit")
        else:
            rank_zero_warn(
                f"{type(callback).__name__} holds a copy of {type(module).__name__} without the "
                "plan. If it averages weights, let it copy the module in on_fit_start"
            )


def _is_outdated(callback: Callback, module: LightningModule) -> bool:
    """Whether a callback holds a module of the kind of ``module`` with other parameters."""
    copies = [
        part
        for value in vars(callback).values()
        if isinstance(value, nn.Module) and value is not module
        for part in value.modules()
        if type(part) is type(module)
    ]
    return any(_names(copy) != _names(module) for copy in copies)


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]
