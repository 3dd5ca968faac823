"""Step times with and without a trunk cache: ``python -m lightning_pelt.benchmark.trunk``.

All models of a round run in one process, on the same batches, in a new random order. Each model has
seen the batches before, so that the cache has their hidden states. The base is in eval mode, as the
cache needs it; the floor, too, runs without dropout.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from jsonargparse import auto_cli
from tabulate import tabulate
from torch import Tensor, nn
from tqdm import tqdm

from lightning_pelt.attach import attach
from lightning_pelt.benchmark.measure import Ratio, ratio
from lightning_pelt.benchmark.timing import Setting, frozen_floor
from lightning_pelt.methods import LoRA
from lightning_pelt.plans import Group, Plan, UniPELT
from lightning_pelt.training.trunk_cache import CachedTrunk

FLOOR = "floor"
WARM_UP = 2
BATCHES = 4
LIMIT = 2**30  # bytes of the cache, in a temporary folder
PLANS: dict[str, Callable[[], Plan]] = {"lora": lambda: Plan.uniform(LoRA()), "unipelt": UniPELT}


class Steps:
    """Training steps of a model on fixed batches."""

    def __init__(self, model: nn.Module, batches: Sequence[dict[str, Tensor]]) -> None:
        self.model, self.batches = model, batches
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step(self, batch: dict[str, Tensor]) -> None:
        self.model(**batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self) -> tuple[float, float]:
        """Seconds of one pass over the batches: of wall-clock time, and of processor time."""
        _synchronize(self.batches)
        cpu, wall = time.process_time(), time.perf_counter()
        for batch in self.batches:
            self.step(batch)
        _synchronize(self.batches)
        return time.perf_counter() - wall, time.process_time() - cpu


def compare(
    plan: str = "lora",
    block: int = 2,
    blocks: int = 4,
    width: int = 768,
    batch: int = 8,
    length: int = 128,
    rounds: int = 8,
    device: str = "cpu",
    threads: int = 2,
) -> dict[str, Ratio]:
    """Print the step time of a plan for upper blocks, without and with a trunk cache.

    Args:
        plan: what the upper blocks get, ``lora`` or ``unipelt``.
        block: the lowest block of the plan.
        blocks: number of transformer blocks.
        width: hidden size.
        batch: rows of a batch.
        length: tokens of a row; a quarter of some rows is padding.
        rounds: measurements of each model.
        device: device of the models.
        threads: CPU threads of torch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    setting = Setting(device, blocks, width, batch, length, threads)
    batches = [setting.inputs() for _ in range(BATCHES)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        models = {
            FLOOR: Steps(frozen_floor(setting.model()).eval(), batches),
            plan: Steps(_upper(setting, plan, block), batches),
        }
        cached = _upper(setting, plan, block)
        trunk = CachedTrunk(cached.pelt_attachment, Path(folder), max_bytes=LIMIT)  # type: ignore[arg-type]
        stack.callback(trunk.remove)
        models[f"{plan}, cached"] = Steps(cached, batches)
        models[f"{plan}, cached"].step(batches[0])
        trunk.settle()
        times = _measure(models, rounds)
        size = sum(store.size for store in trunk.stores.values())
    print(
        f"BERT {blocks} x {width}, plan from block {block} on, batch {batch} x {length}, fp32, "
        f"{device}, {threads} threads, no dropout, {rounds} rounds of {BATCHES} steps; "
        f"{size / 2**20:.1f} MiB of states for {BATCHES * batch} rows\n"
    )
    return _table(times, bound=(blocks - block) / blocks)


def _upper(setting: Setting, plan: str, block: int) -> nn.Module:
    model = setting.model()
    numbers = list(range(block, setting.blocks))
    attach(model, Plan([Group(PLANS[plan]().methods, blocks=numbers)])).train(base_dropout=False)
    return model


def _measure(models: dict[str, Steps], rounds: int) -> dict[str, list[tuple[float, float]]]:
    order = random.Random(0)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for number in tqdm(range(WARM_UP + rounds), leave=False):
        for name in order.sample(list(models), len(models)):
            seconds = models[name].seconds()
            if number >= WARM_UP:
                times[name].append(seconds)
    return times


def _table(times: dict[str, list[tuple[float, float]]], *, bound: float) -> dict[str, Ratio]:
    walls = {name: [wall for wall, _ in each] for name, each in times.items()}
    cpus = {name: [cpu for _, cpu in each] for name, each in times.items()}
    ratios = {name: ratio(each, walls[FLOOR]) for name, each in walls.items()}
    rows = [
        (
            name,
            f"{1e3 * min(walls[name]) / BATCHES:.0f}",
            f"{r.median:.3f} [{r.low:.3f}, {r.high:.3f}]",
            f"{r.least:.3f}",
            f"{ratio(cpus[name], cpus[FLOOR]).median:.3f}",
        )
        for name, r in ratios.items()
    ]
    head = ("model", "least ms", "/ floor [quartiles]", "min", "cpu")
    print(tabulate(rows, head, tablefmt="plain", disable_numparse=True))
    print(f"\n(blocks - block) / blocks is {bound:.3f}")
    return ratios


def _synchronize(batches: Sequence[dict[str, Tensor]]) -> None:
    device = batches[0]["input_ids"].device
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(args: Sequence[str] | None = None) -> dict[str, Ratio]:
    """Run :func:`compare` with options of the command line."""
    prog = "python -m lightning_pelt.benchmark.trunk"
    return auto_cli(compare, None if args is None else list(args), as_positional=False, prog=prog)


if __name__ == "__main__":
    main()
