"""Throughput of a search with one and with two workers, one CPU thread each.

    python tests/benchmarks/search_workers.py --config recipes/search_minilm.yaml --folders FOLDER

Rounds with one and with two workers alternate; the jobs are random designs of S0. The clock starts
once as many fits are done as there are workers, by when each has read its data, and stops once all
fits of the round are done.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from jsonargparse import ArgumentParser
from tqdm import tqdm

from lightning_pelt.search.controller import make_search, open_ledger
from lightning_pelt.search.greedy_search import GreedySearch
from lightning_pelt.search.queue.job import Job
from lightning_pelt.search.queue.ledger import Ledger
from lightning_pelt.search.queue.worker_pool import WorkerPool
from lightning_pelt.search.settings import Settings, add_arguments, from_namespace

POLL = 0.05  # seconds


def main(args: Sequence[str] | None = None) -> None:
    """Print fits per hour of one and of two workers, and their ratio."""
    parser = argparse.ArgumentParser(
        prog="python tests/benchmarks/search_workers.py",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--fits", type=int, default=10, help="timed fits per worker and round")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of one and of two workers")
    given, recipe = parser.parse_known_args(args)
    search_parser = ArgumentParser()
    add_arguments(search_parser)
    request = from_namespace(search_parser, search_parser.parse_args(recipe))
    settings = replace(request.settings, threads=1, wandb=None)
    search = make_search(settings)
    assert isinstance(search, GreedySearch)
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in tqdm(range(2 * given.rounds), desc="rounds"):
            workers = 1 + number % 2
            storage = str(Path(folder, f"{number}.journal"))
            jobs = first_jobs(search, (given.fits + 1) * workers)
            command = [sys.executable, "-m", "lightning_pelt", "search", *recipe]
            command += [f"--storage={storage}", "--threads=1", "--worker"]
            rates[workers].append(timed(replace(settings, storage=storage), jobs, workers, command))
    for workers, found in rates.items():
        each = ", ".join(f"{3600 * rate:,.0f}" for rate in found)
        print(f"{workers} worker{'s' if workers > 1 else ''}: {each} fits per hour")
    print(f"ratio of the means: {fmean(rates[2]) / fmean(rates[1]):.2f}")


def first_jobs(search: GreedySearch, count: int) -> list[Job]:
    """The first jobs of random designs, alternating between the tasks."""
    stage = search.space.stage("start", {})
    assert stage is not None
    found: list[Job] = []
    block = 0
    while len(found) < count:
        (design,) = search.space.designs(stage, {}, block).values()
        solution = design.solution(search.space.anatomy)
        plan, seed = solution.plan().to_config(), search.space.block_seed(block)
        found += [Job(plan, task, seed, parameters=solution.total) for task in search.tasks]
        block += 1
    return found[:count]


def timed(settings: Settings, jobs: Sequence[Job], workers: int, command: Sequence[str]) -> float:
    """Fits per second, from the time at which one fit per worker is done."""
    ledger = open_ledger(settings)
    ledger.enqueue(jobs)
    with WorkerPool(workers, command) as pool:
        pool.refill(0)
        start = wait_for(ledger, workers)
        done = len(ledger.outcomes())
        end = wait_for(ledger, len(jobs))
    ledger.finished = True
    return (len(jobs) - done) / (end - start)


def wait_for(ledger: Ledger, count: int) -> float:
    """Wait until ``count`` fits are done; return the time.

    Raises:
        RuntimeError: a fit failed.
    """
    while len(ledger.outcomes()) < count:
        if errors := ledger.errors():
            raise RuntimeError(next(iter(errors.values())))
        time.sleep(POLL)
    return time.perf_counter()


if __name__ == "__main__":
    main()
