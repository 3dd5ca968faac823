"""Contestants that take turns, and what their turns say."""

from __future__ import annotations

import multiprocessing
import random
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, TypeVar

from tqdm import tqdm

from lightning_pelt.benchmark.contestant import (
    FLOOR,
    FULL,
    RIVALS,
    Contestant,
    Setting,
    Turn,
    give_back_freed_memory,
)

DISTURBED = 0.15  # cores taken by other processes
ENOUGH = 3  # rounds without disturbance, to do without the others
WARM_UP = 2
MEMORY_STEPS = 4

Result = TypeVar("Result")
_contestant: Contestant | None = None  # of a worker process


@dataclass(frozen=True)
class Ratio:
    """A plan's time over a baseline's: median and quartiles over rounds, ratio of minima."""

    median: float
    low: float
    high: float
    least: float


@dataclass(frozen=True)
class Standing:
    """What one plan costs.

    Attributes:
        seconds: a step's median.
        floor, full: the step's time over that of the floor, and of full fine-tuning.
        cpu: processor time over the floor's, which other processes disturb less.
        rival: the step's time over that of the plan's rival, where it took part.
        memory: peak bytes over the idle model.
        disturbed: turns that met other load.
        kept: whether they are in the figures all the same, since too few were free of it.
    """

    seconds: float
    floor: Ratio
    full: Ratio
    cpu: Ratio
    rival: Ratio | None
    memory: int
    disturbed: int
    kept: bool


class Worker:
    """A process of its own, which runs one function after the other."""

    def __init__(self) -> None:
        # Forked from a server that has imported everything and done nothing yet: quick to start,
        # and alike. A forked copy of this process would inherit its threads and its peak memory.
        method = "spawn" if sys.platform == "win32" else "forkserver"
        context = multiprocessing.get_context(method)
        context.set_forkserver_preload(["lightning_pelt.benchmark.contestant"])
        self._pool = ProcessPoolExecutor(1, mp_context=context)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        return self._pool.submit(function, *args, **kwargs).result()


def _start(name: str, setting: Setting) -> None:
    global _contestant
    _contestant = Contestant(name, setting)


def _turn(steps: int) -> Turn:
    assert _contestant is not None
    return _contestant.turn(steps)


def _memory(name: str, setting: Setting) -> int:
    give_back_freed_memory()
    contestant = Contestant(name, setting)
    contestant.turn(MEMORY_STEPS)
    return contestant.over_idle()


def race(
    names: Sequence[str], setting: Setting, *, rounds: int, steps: int = 2, seed: int = 0
) -> dict[str, Standing]:
    """Let plans take turns of ``steps`` steps, ``rounds`` times each in shuffled order.

    ``names`` must hold both baselines. Two more rounds at the start are not counted. Memory is
    measured first, in processes of its own.
    """
    order = random.Random(seed)
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(names) * (2 + WARM_UP + rounds), leave=False))
        memory = {}
        for name in names:
            bar.set_description(f"memory of {name}")
            with Worker() as worker:
                memory[name] = worker.run(_memory, name, setting)
            bar.update()
        workers = {name: stack.enter_context(Worker()) for name in names}
        for name, worker in workers.items():
            bar.set_description(f"building {name}")
            worker.run(_start, name, setting)
            bar.update()
        for number in range(WARM_UP + rounds):
            for name in order.sample(list(names), len(names)):
                bar.set_description(f"round {number}: {name}")
                turns[name].append(workers[name].run(_turn, steps))
                bar.update()
    counted = {name: taken[WARM_UP:] for name, taken in turns.items()}
    return {name: standing(counted, name, memory[name]) for name in names}


def standing(turns: dict[str, list[Turn]], name: str, memory: int = 0) -> Standing:
    """The figures of one plan, from the turns of all; turns of one round share an index."""
    own = turns[name]
    rival = turns.get(RIVALS.get(name, ""), own)
    quiet = [
        [i for i, pair in enumerate(zip(own, other, strict=True)) if not any(map(disturbed, pair))]
        for other in (turns[FLOOR], turns[FULL], rival)
    ]
    kept = min(map(len, quiet)) < ENOUGH
    floor, full, against = [range(len(own))] * 3 if kept else quiet
    return Standing(
        seconds=median(own[i].wall for i in floor),
        floor=ratio([own[i].wall for i in floor], [turns[FLOOR][i].wall for i in floor]),
        full=ratio([own[i].wall for i in full], [turns[FULL][i].wall for i in full]),
        cpu=ratio([own[i].cpu for i in floor], [turns[FLOOR][i].cpu for i in floor]),
        rival=None
        if rival is own
        else ratio([own[i].wall for i in against], [rival[i].wall for i in against]),
        memory=memory,
        disturbed=sum(map(disturbed, own)),
        kept=kept,
    )


def disturbed(turn: Turn) -> bool:
    return turn.load is not None and turn.load > DISTURBED


def ratio(own: Sequence[float], other: Sequence[float]) -> Ratio:
    """``own`` over ``other``, round by round."""
    ratios = [a / b for a, b in zip(own, other, strict=True)]
    low, middle, high = (
        quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
    )
    return Ratio(middle, low, high, min(own) / min(other))
