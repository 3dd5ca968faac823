"""Measurements of several plans, interleaved in rounds, and their summary."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median, quantiles

from tqdm import tqdm

from lightning_pelt.benchmark.contestants import Contestant
from lightning_pelt.benchmark.plans import FLOOR, FULL, REFERENCES
from lightning_pelt.benchmark.timing import StepTime

DISTURBED = 0.15  # cores used by other processes
MIN_ROUNDS = 3  # undisturbed rounds that are needed to leave out the others
WARM_UP = 2


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


def measure(
    starts: Mapping[str, Callable[[], Contestant]],
    *,
    rounds: int,
    steps: int = 2,
    seed: int = 0,
    failed: Callable[[str], None] = print,
) -> dict[str, PlanCost]:
    """Measure plans in shuffled order, ``steps`` steps of each plan in every round.

    Two additional rounds at the start warm up. Memory is measured first, in separate processes.

    Args:
        starts: what starts the process of each plan, by name; among them both baselines.
        rounds: measurements of each plan.
        steps: training steps of a measurement.
        seed: of the order.
        failed: is called with the reason if another library cannot train its method, which is then
            left out.
    """
    order = random.Random(seed)
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(starts) * (2 + WARM_UP + rounds), leave=False))
        memory = {}
        for name, start in starts.items():
            bar.set_description(f"memory of {name}")
            with start() as contestant:
                try:
                    memory[name] = contestant.memory()
                except RuntimeError as error:
                    failed(str(error))
            bar.update()
        running = {name: stack.enter_context(starts[name]()) for name in memory}
        times: dict[str, list[StepTime]] = {name: [] for name in running}
        for name, contestant in running.items():
            bar.set_description(f"building {name}")
            contestant.build()
            bar.update()
        for number in range(WARM_UP + rounds):
            for name in order.sample(list(running), len(running)):
                bar.set_description(f"round {number}: {name}")
                times[name].append(running[name].time_steps(steps))
                bar.update()
    counted = {name: measured[WARM_UP:] for name, measured in times.items()}
    return {name: plan_cost(counted, name, memory[name]) for name in running}


def plan_cost(times: dict[str, list[StepTime]], name: str, memory: int = 0) -> PlanCost:
    """The cost of one plan, from the times of all plans; index i is round i in every list."""
    own = times[name]
    reference = times.get(reference_of(name), own)
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


def reference_of(name: str) -> str:
    """The plan that a plan is compared with; empty for none. ``peft:lora`` has ``lora``."""
    _, _, method = name.partition(":")
    return method or REFERENCES.get(name, "")


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
