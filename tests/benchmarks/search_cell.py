"""The fixed cost of a cell of a search: all that is not a step of training or a batch scored.

python tests/benchmarks/search_cell.py

Times are of the processor, so that other processes on the machine count little. The first cell of
a process also reads and tokenises the rows, and is not counted.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jsonargparse import ArgumentParser
from tabulate import tabulate

from lightning_pelt import Adapter, LoRA, Plan, StdlibDocs, UniPELT
from lightning_pelt.search.fit_job import FitModule, Fitter
from lightning_pelt.search.queue.job import Job
from lightning_pelt.search.settings import FitSettings, Settings, TaskSettings
from lightning_pelt.training import module

PLANS: dict[str, Callable[[], Plan]] = {
    "LoRA": lambda: Plan.uniform(LoRA(r=4)),
    "adapter": lambda: Plan.uniform(Adapter(bottleneck=8)),
    "UniPELT": lambda: UniPELT(),
}
STEPS = ("training_step", "backward", "validation_step")


class Clock:
    """Adds up the time that functions take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, name: str) -> None:
        """Replace a function by one that is timed."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **options)
            finally:
                took = time.process_time() - start
                self.seconds[name] = self.seconds.get(name, 0.0) + took

        setattr(owner, name, timed)


def settings(folder: str) -> Settings:
    """A search on MiniLM whose cells have one step, and score one batch."""

    def data(backbone: str, **options: Any) -> StdlibDocs:
        return StdlibDocs(backbone, batch_size=8, limit_train=200, limit_eval=8, **options)

    return Settings(
        "sentence-transformers/all-MiniLM-L6-v2",
        {"docs": TaskSettings(data)},
        FitSettings(max_steps=1),
        storage=str(Path(folder, "cells.journal")),
        threads=1,
        accelerator="cpu",
    )


def main(args: Sequence[str] | None = None) -> dict[str, float]:
    """Measure, print a table, and return the fixed cost of a cell of each plan, in seconds."""
    options = ArgumentParser(description="The fixed cost of a search's cell.")
    options.add_argument("--cells", type=int, default=5, help="of each plan")
    given = options.parse_args(args)
    torch.set_num_threads(1)
    clock, rows = Clock(), []
    for name in STEPS:
        clock.watch(FitModule, name)
    clock.watch(module, "attach")
    with tempfile.TemporaryDirectory() as folder:
        fitter = Fitter(settings(folder))
        for name, plan in PLANS.items():
            cells = []
            for seed in range(given.cells + 1):
                clock.seconds.clear()
                start = time.process_time()
                fitter(Job(plan().to_config(), "docs", seed=seed))
                whole = time.process_time() - start
                steps = sum(clock.seconds[each] for each in STEPS)
                cells.append((whole, whole - steps, clock.seconds["attach"]))
            rows.append([name, *(median(column) for column in zip(*cells[1:], strict=True))])
    print(tabulate(rows, headers=("plan", "cell", "fixed", "of it attach"), floatfmt=".3f"))
    return {str(row[0]): float(row[2]) for row in rows}


if __name__ == "__main__":
    main()
