"""A stranger's module under tensor parallelism, on two times two processes; a script.

A tiny model takes four steps with a plan that a PELTCallback finds attached.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import Tiny, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tensor_parallel_steps import SplitAlike, strategy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, DistributedSampler
from zoo import build

from lightning_pelt import Adapter, PELTCallback, UniPELT, split_base

PLANS = {
    "split_base": UniPELT(),
    "parallelize_module": UniPELT([Adapter()]),  # extends no layer of the attention
    "other heads": UniPELT(),  # on the processes that split the base
}
INPUTS = ("query", "key", "value")


class Split(Tiny):
    """Splits its layers with ``split_base``, or those of the attention with torch."""

    def __init__(self, way: str) -> None:
        super().__init__(PLANS[way], optimizer="sgd", lr=0.1)
        self.way, self.net = way, build("llama" if way == "split_base" else "bert")

    def configure_model(self) -> None:
        super().configure_model()
        if self.device_mesh is None:
            return
        if self.way == "other heads":
            torch.nn.init.constant_(self.net.classifier.bias, self.global_rank)
        if self.way != "parallelize_module":
            split_base(self.attachment, self.device_mesh["tensor_parallel"])
        else:
            for block in self.net.bert.encoder.layer:
                styles: dict[str, Any] = {f"self.{name}": ColwiseParallel() for name in INPUTS}
                styles["output.dense"] = RowwiseParallel()
                parallelize_module(block.attention, self.device_mesh["tensor_parallel"], styles)
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self({**batch, "labels": batch["input_ids"]} if self.way == "split_base" else batch)

    def train_dataloader(self) -> DataLoader:
        """Eight rows a step over all processes, in order."""
        rows: Any = loader().dataset
        options = self.trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        sampler: Any = DistributedSampler(rows, shuffle=False, **options)
        return DataLoader(rows, batch_size=8 // options["num_replicas"], sampler=sampler)


def run(folder: Path, way: str, *, processes: dict[str, Any]) -> None:
    keep = ModelCheckpoint(dirpath=folder, filename=way, every_n_train_steps=1)
    checks = [SplitAlike()] if processes else []
    callbacks = [PELTCallback(PLANS[way], base_dropout=False), keep, *checks]
    own = {"enable_checkpointing": True, "max_epochs": 2, "use_distributed_sampler": False}
    trainer(folder, *callbacks, **own, **processes).fit(Split(way))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("ways", nargs="+")
    parser.add_argument("--alone", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for way in asked.ways:
        processes = {} if asked.alone else {"strategy": strategy(), "devices": 4}
        wrong = pytest.raises(ValueError, match=r"other values of net.classifier.bias and of 0 ")
        with wrong if way == "other heads" else nullcontext():
            run(asked.folder, way, processes=processes)


if __name__ == "__main__":
    main()
