"""How many fits of a search two workers finish for one of a single worker, one thread each.

    python -m lightning_pelt.benchmark.workers --config recipes/search_minilm.yaml --folders FOLDER

One and two workers take turns at random designs of S0. The clock starts when as many fits are done
as there are workers, by when each has read its data, and stops when those of the turn are done.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from lightning_pelt.search.cell import Cell
from lightning_pelt.search.command import course_of, ledger_of
from lightning_pelt.search.course import Course
from lightning_pelt.search.ledger import Ledger
from lightning_pelt.search.settings import Settings, parse

POLL = 0.05  # seconds


def main(args: Sequence[str] | None = None) -> None:
    """Print fits per hour of one and of two workers, and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fits", type=int, default=10, help="timed fits per worker and turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns of one and of two workers")
    given, recipe = parser.parse_known_args(args)
    settings = replace(parse(recipe).settings, threads=1, wandb=None)
    course = course_of(settings)
    assert isinstance(course, Course)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in tqdm(range(2 * given.rounds), desc="turns"):
            workers = 1 + turn % 2
            storage = str(Path(folder, f"{turn}.journal"))
            mine = replace(settings, storage=storage)
            cells = some_cells(course, (given.fits + 1) * workers)
            command = [sys.executable, "-m", "lightning_pelt", "search", *recipe]
            command += [f"--storage={storage}", "--threads=1", "--worker"]
            rates[workers].append(timed(mine, cells, workers, command))
    for workers, found in rates.items():
        each = ", ".join(f"{3600 * rate:,.0f}" for rate in found)
        print(f"{workers} worker{'s' if workers > 1 else ''}: {each} fits per hour")
    print(f"ratio of the means: {fmean(rates[2]) / fmean(rates[1]):.2f}")


def some_cells(course: Course, count: int) -> list[Cell]:
    """The first cells of random designs: of both tasks by turns, the same ones for everybody."""
    stage = course.space.stage("start", {})
    assert stage is not None
    found: list[Cell] = []
    block = 0
    while len(found) < count:
        (design,) = course.space.designs(stage, {}, block).values()
        solution = design.solution(course.space.anatomy)
        plan, seed = solution.plan().to_config(), course.space.block_seed(block)
        found += [Cell(plan, task, seed, parameters=solution.total) for task in course.tasks]
        block += 1
    return found[:count]


def timed(settings: Settings, cells: Sequence[Cell], workers: int, command: Sequence[str]) -> float:
    """Fits per second once there is one for each worker."""
    ledger = ledger_of(settings)
    ledger.enqueue(cells)
    with at_work(command, workers):
        start = await_done(ledger, workers)
        done = len(ledger.outcomes())
        end = await_done(ledger, len(cells))
    ledger.finished = True
    return (len(cells) - done) / (end - start)


@contextmanager
def at_work(command: Sequence[str], workers: int) -> Iterator[None]:
    """Worker processes for the time of a ``with`` block."""
    every = [subprocess.Popen(command) for _ in range(workers)]
    try:
        yield
    finally:
        for worker in every:
            worker.terminate()
            worker.wait()


def await_done(ledger: Ledger, count: int) -> float:
    """The time at which so many fits are done.

    Raises:
        RuntimeError: one of them failed.
    """
    while len(ledger.outcomes()) < count:
        if errors := ledger.errors():
            raise RuntimeError(next(iter(errors.values())))
        time.sleep(POLL)
    return time.perf_counter()


if __name__ == "__main__":
    main()
