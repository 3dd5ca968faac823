"""The share of a training step that ``GateMonitor`` takes."""

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
from lightning_pelt.benchmark.timing import Setting
from lightning_pelt.callbacks import GateMonitor
from lightning_pelt.plans import UniPELT


class TimedGateMonitor(GateMonitor):
    """Measures the seconds inside its hook and those of all steps, after its first log step."""

    def __init__(self, every_n_steps: int) -> None:
        super().__init__(every_n_steps)
        self.inside = self.total = 0.0
        self.started: float | None = None

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # else the hook, which synchronizes, would include the step
        start = time.perf_counter()
        super().on_train_batch_end(trainer, *args, **kwargs)
        now = time.perf_counter()
        if self.started is not None:
            self.inside += now - start
            self.total = now - self.started
        elif trainer.global_step >= self.every_n_steps:
            self.started = now

    def share(self) -> float:
        """Seconds inside the hook over the seconds of the steps without it."""
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


def monitor_share(setting: Setting, *, every_n_steps: int = 10, log_steps: int = 3) -> float:
    """The time inside the monitor's hook over all other time of a fit with UniPELT APL.

    The first log step runs lazy imports and is not counted; the next ``log_steps`` are.
    """
    torch.set_num_threads(setting.threads)
    monitor = TimedGateMonitor(every_n_steps)
    steps = every_n_steps * (1 + log_steps)
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
