"""What ``GateMonitor`` adds to a training step."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_pelt.attach import attach
from lightning_pelt.benchmark.contestant import Setting
from lightning_pelt.callbacks import GateMonitor
from lightning_pelt.plan import UniPELT


class TimedMonitor(GateMonitor):
    """Measures itself: seconds inside its hook, and of all steps, after the first reading."""

    def __init__(self, every_n_steps: int) -> None:
        super().__init__(every_n_steps)
        self.inside = self.total = 0.0
        self.started: float | None = None

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # or the hook, which waits once, would pay for the whole step
        start = time.perf_counter()
        super().on_train_batch_end(trainer, *args, **kwargs)
        now = time.perf_counter()
        if self.started is not None:
            self.inside += now - start
            self.total = now - self.started
        elif trainer.global_step >= self.every_n_steps:
            self.started = now

    def share(self) -> float:
        """Of the time of a step without the monitor."""
        return self.inside / (self.total - self.inside)


class _Steps(LightningModule):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.model = setting.model()

    def configure_model(self) -> None:
        attach(self.model, UniPELT())

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-4)


def monitor_share(setting: Setting, *, every_n_steps: int = 10, readings: int = 3) -> float:
    """The time inside the monitor's hook as a share of all other time of a fit with UniPELT APL.

    The first reading, with its lazy imports, is not counted; ``readings`` more are.
    """
    torch.set_num_threads(setting.threads)
    monitor = TimedMonitor(every_n_steps)
    steps = every_n_steps * (1 + readings)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="gpu" if setting.device.startswith("cuda") else setting.device,
            devices=1,
            max_steps=steps,
            logger=CSVLogger(folder),
            callbacks=[monitor],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=every_n_steps,
        )
        batches = [setting.inputs() for _ in range(steps)]
        trainer.fit(_Steps(setting), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return monitor.share()
