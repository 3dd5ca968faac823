"""Sentences of three people, and a fit of X-PEFT to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from callbacks.tiny import trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import Strategy
from small import LABELS, Sentences

from lightning_pelt import XPEFT, PELTModule, Plan, RandomBank
from lightning_pelt.callbacks import MaskTemperature


class People(Sentences):
    """The length of a sentence determines its profile."""

    def encode(self, rows: dict[str, list[Any]], split: str) -> dict[str, list[Any]]:
        found = super().encode(rows, split)
        return {**found, "profile": [number % 3 for number in rows["number"]]}


def fit(
    folder: Path,
    backbone: str,
    *,
    strategy: str | Strategy = "auto",
    devices: int = 1,
    profiles: int = 4,
    accumulate: int = 1,
    **options: Any,
) -> PELTModule:
    """Ten steps on global batches of four, without sentences of the fourth profile."""
    method = XPEFT(
        bank=RandomBank(size=12), k=4, scale=8.0, bottleneck=4, profiles=profiles, **options
    )
    module = PELTModule(backbone, Plan.uniform(method), labels=LABELS, lr=0.05, warmup=0.1)
    run = trainer(
        folder,
        MaskTemperature(start=2.0),
        ModelCheckpoint(folder, filename="last", every_n_train_steps=10),
        strategy=strategy,
        devices=devices,
        max_steps=10,
        max_epochs=-1,
        gradient_clip_val=0.1,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=True,
    )
    run.fit(module, People(backbone, batch_size=4 // devices // accumulate))
    return module
