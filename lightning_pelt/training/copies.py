"""Callbacks that copy a module before its model is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from lightning_pelt.utils.same_kind import same_kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightning.pytorch import Callback, LightningModule, Trainer

    from lightning_pelt.methods.gate import GateLayer


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


def share_openness(trainer: Trainer, module: LightningModule, layers: Iterable[GateLayer]) -> None:
    """Let averages of weights have the openness of ``module``, rather than average it.

    ``EMAWeightAveraging`` averages buffers too, and exchanges the buffers of the module for its
    averages in validation: a pruned gate would be open again, and one that is pruned meanwhile
    would be open in the steps that follow. The openness of a schedule is not a learned weight.

    Args:
        trainer: that fits ``module``.
        module: on its device.
        layers: its gates.
    """
    own = set(map(id, layers))
    paths = [path for path, part in module.named_modules() if id(part) in own]
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if not same_kind(callback, WeightAveraging):
            continue
        for copy in _copies(callback, module):
            for path in paths:
                copy.get_submodule(path).open = module.get_submodule(path).open


def _is_outdated(callback: Callback, module: LightningModule) -> bool:
    """Whether a callback holds a module of the kind of ``module`` with other parameters."""
    return any(_names(copy) != _names(module) for copy in _copies(callback, module))


def _copies(callback: Callback, module: LightningModule) -> list[nn.Module]:
    """The modules of the kind of ``module`` that a callback holds."""
    return [
        part
        for value in vars(callback).values()
        if isinstance(value, nn.Module) and value is not module
        for part in value.modules()
        if type(part) is type(module)
    ]


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]
