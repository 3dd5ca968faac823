"""Lightning's finders of a learning rate and a batch size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_pelt.utils.same_kind import same_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning.pytorch import Trainer
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


def finders(trainer: Trainer) -> list[Callback]:
    """The callbacks of a trainer that change settings in ``on_fit_start``."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [each for each in callbacks if same_kind(each, BatchSizeFinder, LearningRateFinder)]


def refuse_finder_on_resume(trainer: Trainer) -> None:
    """Raise if a fit that resumes has a finder: Lightning then drops the state of the checkpoint.

    The finder restores a checkpoint that it has written, and Lightning holds one at a time: the
    resumed run would begin at step 0 with a new optimizer.

    Args:
        trainer: that loads a checkpoint. It has no optimizers yet when it resumes; the finder's
            checkpoint is loaded later.

    Raises:
        ValueError: there is a finder, and a checkpoint to resume from.
    """
    names = [type(callback).__name__ for callback in finders(trainer)]
    if names and trainer.state.fn == TrainerFn.FITTING and not trainer.optimizers:
        raise ValueError(
            f"the run resumes from {trainer.ckpt_path}, and {names[0]} would lose the place in it "
            f"and the optimizer's state: remove {names[0]}, and set what it has found yourself"
        )


def follow_finders(
    trainer: Trainer,
    *,
    lr: float,
    groups: Sequence[dict[str, Any]],
    schedule: Callable[[Optimizer], LRScheduler],
) -> None:
    """Give the optimizer the rates, and the schedule the steps, that finders have led to.

    Lightning sets the rate that it has found in the optimizer, and the schedule, which was built
    before, replaces it at the next step.

    Args:
        trainer: with one optimizer and one schedule.
        lr: the rate by now.
        groups: the parameter groups as they are to be, by ``name`` and ``lr``.
        schedule: builds the schedule of an optimizer.
    """
    rates = {group["name"]: group["lr"] for group in groups}
    (optimizer,), (config,) = trainer.optimizers, trainer.lr_scheduler_configs
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = rates[group["name"]]
    config.scheduler = schedule(optimizer)
    others = {name: rate for name, rate in rates.items() if rate != lr}
    if others and any(same_kind(callback, LearningRateFinder) for callback in finders(trainer)):
        listed = ", ".join(f"{name} {rate:g}" for name, rate in others.items())
        rank_zero_info(
            f"LearningRateFinder has found the rate {lr:g}, and lrs is scaled with it: {listed}"
        )


def scaled(lrs: dict[str, float] | None, *, before: float, lr: float) -> dict[str, float] | None:
    """The rates of single groups, in the proportion to ``lr`` that they had to ``before``.

    A rate of 0 has no proportion, so that ``lrs`` stays as it is.
    """
    if not lrs or not before:
        return lrs
    return {group: rate * lr / before for group, rate in lrs.items()}
