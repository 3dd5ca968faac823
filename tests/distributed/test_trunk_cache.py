"""Two processes share the states of a trunk, and train what one process trains without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from small import LABELS, Sentences, bert

from lightning_pelt import Group, LoRA, PELTModule, Plan, TrunkCache

pytestmark = pytest.mark.slow
EPOCHS, BATCH = 3, 4


class Rows(Callback):
    """Writes how many rows a process has read and computed, by epoch."""

    def __init__(self, cache: TrunkCache, folder: Path) -> None:
        self.cache, self.folder = cache, folder
        self.lines: list[str] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.counts = self.cache.trunks[0].counts
        self.epoch = f"{trainer.current_epoch} {self.counts.read} {self.counts.computed}"
        self.lines = [e for e in self.lines if e[0] != self.epoch[0]] + [self.epoch]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        (self.folder / f"rank{trainer.global_rank}").write_text("\n".join(self.lines))


def fit(folder: Path, backbone: str, *, processes: int, cache: TrunkCache | None) -> dict[str, Any]:
    folder.mkdir()
    plan = Plan([Group([LoRA(r=2)], blocks=[1])])
    module = PELTModule(backbone, plan, labels=LABELS, lr=1e-2, base_dropout=False)
    saving = ModelCheckpoint(folder, filename="last")
    cached = [] if cache is None else [cache, Rows(cache, folder)]
    run = trainer(
        folder,
        saving,
        *cached,
        max_epochs=EPOCHS,
        devices=processes,
        strategy="ddp_fork" if processes > 1 else "auto",
        enable_checkpointing=True,
        num_sanity_val_steps=0,
    )
    run.fit(module, Sentences(backbone, batch_size=BATCH // processes))
    state: dict[str, Any] = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return state


def rows(folder: Path, rank: int) -> list[tuple[int, int]]:
    lines = (folder / f"rank{rank}").read_text().splitlines()
    return [(int(line.split()[1]), int(line.split()[2])) for line in lines]


def test_two_processes_share_the_states(tmp_path: Path) -> None:
    backbone = bert(tmp_path / "bert")
    one = fit(tmp_path / "one", backbone, processes=1, cache=None)
    cache = TrunkCache(tmp_path / "trunk")
    two = fit(tmp_path / "two", backbone, processes=2, cache=cache)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)  # sums over two processes
    for rank in (0, 1):
        first, *later = rows(tmp_path / "two", rank)
        assert first[1] > 0
        assert later == [(10, 0)] * (EPOCHS - 1)  # rows of the other process too
    again = TrunkCache(tmp_path / "trunk")
    later_run = fit(tmp_path / "again", backbone, processes=2, cache=again)
    torch.testing.assert_close(later_run, two, rtol=0, atol=1e-6)
    assert all(computed == 0 for rank in (0, 1) for _, computed in rows(tmp_path / "again", rank))
