"""Anneal the softmax temperature of X-PEFT's masks."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_pelt.callbacks._attached import attached_to
from lightning_pelt.methods.submodule import Submodule


class MaskTemperature(Callback):
    """Lower the temperature of X-PEFT's masks geometrically, from ``start`` to the masks' own.

    The temperature changes the output of soft masks and the gradient of hard ones, so it always
    ends at ``XPEFT(temperature=...)``. Evaluation and stored profiles use that temperature too. The
    temperature depends only on the step, so a resumed run continues unchanged.

    Args:
        start: temperature of the first step.
        until: share of the run's steps after which the end is reached, in (0, 1].

    Raises:
        ValueError: ``start`` is not positive, or ``until`` is outside (0, 1].

    Example:
        >>> from lightning_pelt import MaskTemperature
        >>> annealing = MaskTemperature(start=8.0, until=0.5)
        >>> [round(annealing.at(step, steps=100, end=0.5), 2) for step in (0, 25, 50, 99)]
        [8.0, 2.0, 0.5, 0.5]
    """

    def __init__(self, start: float = 5.0, until: float = 0.5) -> None:
        if start <= 0 or not 0 < until <= 1:
            raise ValueError(
                f"MaskTemperature has start={start}, until={until}: give a start above 0, and a "
                "share of the run's steps in (0, 1] for until"
            )
        self.start, self.until = start, until
        self._ends: dict[Submodule, float] = {}  # each submodule's own temperature

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        modules = attached_to(pl_module, self).submodules
        self._ends = {m: m.temperature for m in modules if m.temperature is not None}
        if not self._ends:
            raise ValueError(
                "MaskTemperature has nothing to anneal: no method of this plan has masks. Attach a "
                "plan with XPEFT, or remove the callback"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        steps = trainer.estimated_stepping_batches
        for module, end in self._ends.items():
            module.temperature = self.at(trainer.global_step, steps, end)

    def at(self, step: int, steps: float, end: float) -> float:
        """The temperature at ``step`` of ``steps``; ``end`` is the last one."""
        share = min(1.0, step / max(1.0, self.until * steps))
        return end if share == 1 else self.start ** (1 - share) * end**share

    def _set_to_end(self) -> None:
        for module, end in self._ends.items():
            module.temperature = end

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set_to_end()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set_to_end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, error: Any) -> None:
        self._set_to_end()
