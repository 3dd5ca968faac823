"""Randomness that follows from the step, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import numpy as np
import torch


class StepSeed:
    """Seeds torch's generators anew before every training batch.

    The dropout of a batch then depends on the run's seed, the process, and the place of the batch
    in training, and on nothing that happened before: not on validations, callbacks or restarts.
    All that a checkpoint has to hold is one integer, whatever the number of devices and processes;
    a generator's state would be one for each of them, and would have to be put back after the data
    loader, which draws from it too, has begun its epoch.

    The seed of the run is torch's own at the first batch, i.e. that of ``seed_everything``.
    """

    def __init__(self) -> None:
        self.seed: int | None = None

    def start(self, *, epoch: int, batch: int, rank: int, device: torch.device) -> None:
        """Seed the generators of the CPU and of ``device``."""
        if self.seed is None:
            self.seed = torch.initial_seed()
        words = np.random.SeedSequence([self.seed, rank, epoch, batch]).generate_state(1, np.uint64)
        # Not torch.manual_seed: it visits all devices, and queues a call on those not in use.
        torch.default_generator.manual_seed(int(words[0]))
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(int(words[0]))
