"""A tiny fit with gates: a random two-block BERT, random tokens, random labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader
from zoo import FIRST_WORD, LABELS, VOCABULARY, build

from lightning_pelt import UniPELT, attach
from lightning_pelt.attach import Attachment, find_attachment

BATCH, TOKENS = 4, 8


class Tiny(LightningModule):
    """A module that attaches a plan itself; ``optimizer`` is sgd, adamw or one group."""

    def __init__(self, plan: Any = None, optimizer: str = "adamw", lr: float = 0.01) -> None:
        super().__init__()
        self.net = build("bert")
        self.plan = UniPELT() if plan is None else plan
        self.optimizer, self.lr = optimizer, lr

    def configure_model(self) -> None:
        torch.manual_seed(2)
        attach(self.net, self.plan)

    @property
    def attachment(self) -> Attachment:
        found = find_attachment(self)
        assert found is not None
        return found

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = self.attachment.parameter_groups()
        if self.optimizer == "one group":
            return torch.optim.AdamW([p for g in groups.values() for p in g], lr=self.lr)
        named = [{"name": name, "params": params} for name, params in groups.items()]
        if self.optimizer == "sgd":
            return torch.optim.SGD(named, lr=self.lr)
        return torch.optim.AdamW(named, lr=self.lr, weight_decay=0.1)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.net(**batch).loss

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self(batch)

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        self(batch)


def loader(batches: int = 4, seed: int = 0) -> DataLoader:
    """``batches`` batches of 4 rows x 8 tokens, always the same ones and in the same order."""
    draw = torch.Generator().manual_seed(seed)
    rows = [
        {
            "input_ids": torch.randint(FIRST_WORD, VOCABULARY, (TOKENS,), generator=draw),
            "attention_mask": torch.ones(TOKENS, dtype=torch.long),
            "labels": torch.randint(LABELS, (), generator=draw),
        }
        for _ in range(batches * BATCH)
    ]
    return DataLoader(rows, batch_size=BATCH)


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    """A silent CPU trainer that logs to CSV."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": CSVLogger(folder, name="", version="run"),
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **options})


def copies(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """The values as they are now."""
    return [parameter.detach().clone() for parameter in parameters]


def all_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """Bitwise."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
