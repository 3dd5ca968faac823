"""Metrics of uneven shards on two ranks are those of all rows together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import MetricCollection

from lightning_pelt.tasks import CausalLM, Classification, Regression

CLASSES = [torch.tensor([0, 1, 1, 0, 1, 1, 0]), torch.tensor([0, 1, 0, 1, 1, 0, 0])]
VALUES = [torch.tensor([0.1, 2, 3, 1, 5, 4, 2.5]), torch.tensor([0.0, 1, 4, 2, 4.5, 5, 2])]
LOSSES = [torch.tensor([1.0, 2, 4, 1, 0.5, 3, 2]), torch.tensor([9, 1, 5, 2, 7, 3, 4])]


def built() -> list[tuple[MetricCollection, list[torch.Tensor]]]:
    every = ("accuracy", "f1", "matthews", "macro_f1")
    return [
        (Classification(metrics=every).build_metrics(["no", "yes"]), CLASSES),
        (Regression(metrics=("pearson", "spearman", "mse")).build_metrics(), VALUES),
    ]


def values(rows: slice) -> dict[str, float]:
    found: dict[str, torch.Tensor] = {}
    for metrics, (left, right) in built():
        metrics.update(left[rows], right[rows])
        found |= metrics.compute()
    perplexity = CausalLM().build_metrics()
    for loss, tokens in zip(LOSSES[0][rows], LOSSES[1][rows], strict=True):
        perplexity.update(loss, tokens)
    found |= perplexity.compute()
    return {name: float(value) for name, value in found.items()}


def on_rank(rank: int, folder: str, compute: Callable[[slice], dict[str, float]]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.save(compute(slice(0, 2) if rank == 0 else slice(2, 7)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_agree_with_one(tmp_path: Path) -> None:
    mp.start_processes(on_rank, args=(str(tmp_path), values), nprocs=2, start_method="fork")
    expected = values(slice(0, 7))
    assert len(expected) == 8
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert abs(found[name] - value) < 1e-5, name
