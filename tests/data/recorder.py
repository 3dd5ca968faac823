"""A module that records the rows of each process; spawned processes import it by name."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn


class Recorder(LightningModule):
    """Labels identify the rows. Each process writes ``<rank>.json`` into ``folder``."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.folder = folder
        self.seen: dict[str, list[list[float]]] = defaultdict(list)

    def _record(self, stage: str, batch: dict[str, Tensor]) -> Tensor:
        self.seen[stage].append(batch["labels"].tolist())
        return (self.weight * batch["labels"]).mean()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self._record("train", batch)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._record("dev", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._record("test", batch)

    def on_fit_end(self) -> None:
        self._write()

    def on_test_end(self) -> None:
        self._write()

    def _write(self) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(self.seen))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)
