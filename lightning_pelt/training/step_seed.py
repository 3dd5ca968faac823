"""Seeds that follow from the step, so that a resumed run draws the same random numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lightning_pelt.training.ranks import tensor_ranks

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class StepSeed:
    """Seeds torch's generators before every training batch.

    The dropout of a batch then depends only on the run's seed, the rank, the epoch and the index of
    the batch. Validations, callbacks and restarts do not change it. A checkpoint stores one
    integer, for any number of devices and processes. Storing the generators' states would need one
    state for each of them, and each would have to be restored after the data loader, which draws
    from the generator too, has started its epoch.

    The run's seed is torch's initial seed at the first batch or checkpoint, i.e. that of
    ``seed_everything``. The owner sets ``seed`` to None when a run begins, and to that of the
    checkpoint when it resumes.
    """

    def __init__(self) -> None:
        self.seed: int | None = None

    def run_seed(self) -> int:
        """The seed of the run, which the first call decides."""
        if self.seed is None:
            self.seed = torch.initial_seed()
        return self.seed

    def share(self, trainer: Trainer) -> None:
        """Let processes with the same batches draw the same numbers; call when a run begins.

        Unless ``seed_everything`` was called, every process starts with a seed of its own.
        """
        if tensor_ranks(trainer) > 1:
            self.seed = int(trainer.strategy.broadcast(self.run_seed()))

    def start(self, *, epoch: int, batch: int, rank: int, device: torch.device) -> None:
        """Seed the generators of the CPU and of ``device``."""
        words = np.random.SeedSequence([self.run_seed(), rank, epoch, batch]).generate_state(
            1, np.uint64
        )
        # Not torch.manual_seed: it visits all devices, and queues a call on those not in use.
        torch.default_generator.manual_seed(int(words[0]))
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(int(words[0]))
