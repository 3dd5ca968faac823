"""The twenty steps under FSDP2 with tensor parallelism, on two times two processes; a script."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed
from torch.distributed.tensor import DTensor
from twenty_steps import COMPILED, fit, half


class SplitAlike(Callback):
    """Processes that split the same weights end with the same submodules, bit by bit."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        mesh = trainer.strategy.device_mesh
        group, size = mesh["tensor_parallel"].get_group(), mesh["tensor_parallel"].size()
        for parameter in pl_module.parameters():
            if parameter.requires_grad:
                own = parameter.detach()
                own = own.to_local() if isinstance(own, DTensor) else own
                every = [torch.empty_like(own) for _ in range(size)]
                distributed.all_gather(every, own, group=group)
                assert all(torch.equal(own, other) for other in every)


def strategy(*, data: int = 2, sharded: bool = False) -> ModelParallelStrategy:
    return ModelParallelStrategy(
        data_parallel_size=data,
        tensor_parallel_size=2,
        save_distributed_checkpoint=sharded,
        process_group_backend="gloo",
    )


def four(*, sharded: bool = False) -> dict[str, Any]:
    """Options of :func:`fit`."""
    return {"strategy": strategy(sharded=sharded), "devices": 4, "data_ranks": 2}


def two() -> dict[str, Any]:
    """The same, on one times two processes."""
    return {"strategy": strategy(data=1), "devices": 2, "data_ranks": 1}


def main() -> None:
    """UniPELT afresh, on from another run's half, and on from a sharded half; or another plan."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("backbone")
    parser.add_argument("--half", type=Path)
    parser.add_argument("--plan", help="run that alone, on two processes")
    parser.add_argument("--compiled", action="store_true", help="compile that plan")
    parser.add_argument("--seed", type=int, help="of the first process")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    same = [SplitAlike()]
    if asked.plan:
        seed = None if asked.seed is None else asked.seed + int(os.environ.get("LOCAL_RANK", 0))
        options: dict[str, Any] = {"seed": seed, "compile": COMPILED if asked.compiled else False}
        fit(asked.folder, asked.backbone, plan=asked.plan, callbacks=same, **options, **two())
        return
    fit(asked.folder / "afresh", asked.backbone, callbacks=same, **four())
    fit(asked.folder / "resumed", asked.backbone, resume=asked.half, **four())
    sharded = asked.folder / "sharded"
    fit(sharded, asked.backbone, **four(sharded=True))
    fit(asked.folder / "from_shards", asked.backbone, resume=half(sharded), **four())


if __name__ == "__main__":
    main()
