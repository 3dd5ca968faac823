"""Cool the softmax of masks down to the temperature that they are kept with."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_pelt.profiles.masks import Masks, masks_of


class MaskTemperature(Callback):
    """Let the temperature of X-PEFT's masks fall from ``start`` to their own, geometrically.

    Soft masks are another function at another temperature, and hard ones have another gradient: the
    end is always ``XPEFT(temperature=...)``, which evaluation and stored profiles have. The
    temperature follows from the step alone, so a resumed run goes on as it was.

    Args:
        start: temperature of the first step.
        until: share of the run's steps after which the end is reached, in (0, 1].

    Raises:
        ValueError: ``start`` is not positive, or ``until`` is outside (0, 1].
    """

    def __init__(self, start: float = 5.0, until: float = 0.5) -> None:
        if start <= 0 or not 0 < until <= 1:
            raise ValueError(
                f"MaskTemperature has start={start}, until={until}: a temperature above 0 and a "
                "share of the run in (0, 1] are needed"
            )
        self.start, self.until = start, until
        self._masks: Masks | None = None
        self._end = 1.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._masks = masks_of(pl_module)
        self._end = self._masks.temperature

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert self._masks is not None
        self._masks.temperature = self.at(trainer.global_step, trainer.estimated_stepping_batches)

    def at(self, step: int, steps: float) -> float:
        """The temperature of ``step`` out of ``steps``."""
        share = min(1.0, step / max(1.0, self.until * steps))
        return self._end if share == 1 else self.start ** (1 - share) * self._end**share

    def _own(self) -> None:
        if self._masks is not None:
            self._masks.temperature = self._end

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._own()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._own()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, error: Any) -> None:
        self._own()
