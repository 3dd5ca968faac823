"""Measurements of several plans, interleaved in rounds, and their summary."""

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

from lightning_pelt.benchmark.plans import FLOOR, FULL, REFERENCES
from lightning_pelt.benchmark.timing import Setting, StepTime, TimedTraining, return_freed_memory

DISTURBED = 0.15  # cores used by other processes
MIN_ROUNDS = 3  # undisturbed rounds that are needed to leave out the others
WARM_UP = 2
MEMORY_STEPS = 4

Result = TypeVar("Result")
_training: TimedTraining | None = None  # the plan of this worker process


@dataclass(frozen=True)
class Ratio:
    """The time of a plan over the time of a baseline.

    Attributes:
        median: over rounds.
        low: lower quartile over rounds.
        high: upper quartile over rounds.
        least: the plan's minimum over the baseline's minimum.
    """

    median: float
    low: float
    high: float
    least: float


@dataclass(frozen=True)
class PlanCost:
    """The cost of one plan.

    Attributes:
        seconds: median time of a step.
        floor: time of a step over that of the frozen floor.
        full: time of a step over that of full fine-tuning.
        cpu: processor time over that of the frozen floor; less sensitive to other load.
        reference: time of a step over that of the plan's reference, if it was measured.
        memory: peak bytes above the idle model.
        disturbed: number of measurements with too much other load.
        all_rounds: whether disturbed rounds count too, since too few were undisturbed.
    """

    seconds: float
    floor: Ratio
    full: Ratio
    cpu: Ratio
    reference: Ratio | None
    memory: int
    disturbed: int
    all_rounds: bool


class Worker:
    """A separate process that runs functions one after another."""

    def __init__(self) -> None:
        # Forked from a server that has imported everything and run nothing: processes start fast
        # and in the same state. A fork of this process would inherit its threads and peak memory.
        method = "spawn" if sys.platform == "win32" else "forkserver"
        context = multiprocessing.get_context(method)
        context.set_forkserver_preload(["lightning_pelt.benchmark.timing"])
        self._pool = ProcessPoolExecutor(1, mp_context=context)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        return self._pool.submit(function, *args, **kwargs).result()


def _build(name: str, setting: Setting) -> None:
    global _training
    _training = TimedTraining(name, setting)


def _time_steps(steps: int) -> StepTime:
    assert _training is not None
    return _training.time_steps(steps)


def _memory(name: str, setting: Setting) -> int:
    return_freed_memory()
    training = TimedTraining(name, setting)
    training.time_steps(MEMORY_STEPS)
    return training.memory_over_idle()


def measure(
    names: Sequence[str], setting: Setting, *, rounds: int, steps: int = 2, seed: int = 0
) -> dict[str, PlanCost]:
    """Measure plans in shuffled order, ``steps`` steps of each plan in every round.

    Two additional rounds at the start warm up. Memory is measured first, in separate processes.

    Args:
        names: plans, among them both baselines.
        setting: the model and its batches.
        rounds: measurements of each plan.
        steps: training steps of a measurement.
        seed: of the order.
    """
    order = random.Random(seed)
    times: dict[str, list[StepTime]] = {name: [] for name in names}
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
            worker.run(_build, name, setting)
            bar.update()
        for number in range(WARM_UP + rounds):
            for name in order.sample(list(names), len(names)):
                bar.set_description(f"round {number}: {name}")
                times[name].append(workers[name].run(_time_steps, steps))
                bar.update()
    counted = {name: measured[WARM_UP:] for name, measured in times.items()}
    return {name: plan_cost(counted, name, memory[name]) for name in names}


def plan_cost(times: dict[str, list[StepTime]], name: str, memory: int = 0) -> PlanCost:
    """The cost of one plan, from the times of all plans; index i is round i in every list."""
    own = times[name]
    reference = times.get(REFERENCES.get(name, ""), own)
    undisturbed = [
        [i for i, pair in enumerate(zip(own, other, strict=True)) if not any(map(disturbed, pair))]
        for other in (times[FLOOR], times[FULL], reference)
    ]
    all_rounds = min(map(len, undisturbed)) < MIN_ROUNDS
    floor, full, against = [range(len(own))] * 3 if all_rounds else undisturbed
    return PlanCost(
        seconds=median(own[i].wall for i in floor),
        floor=ratio([own[i].wall for i in floor], [times[FLOOR][i].wall for i in floor]),
        full=ratio([own[i].wall for i in full], [times[FULL][i].wall for i in full]),
        cpu=ratio([own[i].cpu for i in floor], [times[FLOOR][i].cpu for i in floor]),
        reference=None
        if reference is own
        else ratio([own[i].wall for i in against], [reference[i].wall for i in against]),
        memory=memory,
        disturbed=sum(map(disturbed, own)),
        all_rounds=all_rounds,
    )


def disturbed(time: StepTime) -> bool:
    """Whether other processes used too much of the machine."""
    return time.load is not None and time.load > DISTURBED


def ratio(own: Sequence[float], other: Sequence[float]) -> Ratio:
    """``own`` over ``other``, round by round."""
    ratios = [a / b for a, b in zip(own, other, strict=True)]
    low, middle, high = (
        quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
    )
    return Ratio(middle, low, high, min(own) / min(other))
