"""The command line of the benchmark."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from jsonargparse import ArgumentParser
from tabulate import tabulate

from lightning_pelt.benchmark.contestants import (
    Contestant,
    OwnPlan,
    PeerMethod,
    Worker,
    peers_of,
)
from lightning_pelt.benchmark.measure import DISTURBED, PlanCost, Ratio, measure, reference_of
from lightning_pelt.benchmark.monitor import monitor_share
from lightning_pelt.benchmark.plans import APL, FLOOR, FULL, PLANS
from lightning_pelt.benchmark.timing import Setting
from lightning_pelt.utils.errors import unknown


def parser() -> ArgumentParser:
    options = ArgumentParser(
        prog="python -m lightning_pelt.benchmark",
        description="Step time and memory of each plan, on a BERT with random weights.",
    )
    options.add_argument(
        "--plans", nargs="+", default=list(PLANS), metavar="PLAN", help="beside both baselines"
    )
    options.add_argument("--rounds", type=int, default=12, help="measurements of each plan")
    options.add_argument("--steps", type=int, default=2, help="training steps of a measurement")
    options.add_class_arguments(Setting, as_group=False)
    options.add_argument(
        "--monitor-every", type=int, default=10, help="every_n_steps of the GateMonitor"
    )
    options.add_argument(
        "--peers",
        nargs="*",
        metavar="PYTHON",
        help="also measure the same methods of PEFT and AdapterHub, in the environments of these "
        "Pythons; without one, in this environment",
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    return options


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, and return the figures."""
    options = parser()
    given = options.parse_args(args)
    for name in given.plans:
        if name not in PLANS:
            options.error(str(unknown("plan", name, PLANS)))
    setting = Setting(**{field.name: given[field.name] for field in fields(Setting)})
    names = list(dict.fromkeys([FLOOR, FULL, *given.plans]))
    starts: dict[str, Callable[[], Contestant]] = {n: partial(OwnPlan, n, setting) for n in names}
    libraries: list[str] = []
    if given.peers is not None:
        try:
            found, libraries = peers(names, setting, given.peers or [sys.executable])
        except (OSError, ValueError) as error:
            options.error(str(error))
        starts |= found
    failures: list[str] = []
    costs = measure(starts, rounds=given.rounds, steps=given.steps, failed=failures.append)
    print(heading(setting, given.rounds, given.steps), table(costs), sep="\n")
    print(*comparisons(costs), *load_note(costs, given.rounds), sep="\n")
    print(*libraries, *(f"not measured: {reason}" for reason in failures), sep="\n")
    figures: dict[str, Any] = {
        "setting": asdict(setting),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "plans": {name: asdict(cost) for name, cost in costs.items()},
    }
    if APL in names:
        with Worker() as worker:
            share = worker.run(monitor_share, setting, every_n_steps=given.monitor_every)
        figures["gate_monitor"] = share
        print(f"GateMonitor every {given.monitor_every} steps: {100 * share:.2f}% of a step's time")
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def peers(
    names: Sequence[str], setting: Setting, pythons: Sequence[str]
) -> tuple[dict[str, Callable[[], Contestant]], list[str]]:
    """The methods of other libraries that match plans, and a line for each environment.

    A library is measured in the first environment that has it.

    Raises:
        OSError, ValueError: an environment cannot run the benchmark.
    """
    starts: dict[str, Callable[[], Contestant]] = {}
    lines = []
    for python in pythons:
        listed = peers_of(python)
        for library, methods in listed.items():
            keys = {n: f"{library.split()[0]}:{n}" for n in names if n in methods}
            for key in keys.values():
                starts.setdefault(key, partial(PeerMethod, key, setting, python=python))
        lines.append(f"{python}: {', '.join(listed) or 'neither peft nor adapters is installed'}")
    return starts, lines


def heading(setting: Setting, rounds: int, steps: int) -> str:
    return (
        f"BERT {setting.blocks} x {setting.width}, batch {setting.batch} x {setting.length}, fp32, "
        f"{setting.device}, {setting.threads} threads, {rounds} rounds of {steps} steps; "
        f"torch {torch.__version__}, {platform.machine()}\n"
    )


def table(costs: dict[str, PlanCost]) -> str:
    """Medians over rounds, quartiles in brackets, and ratios of the minima."""
    head = ("plan", "step ms", "/ floor [quartiles]", "min", "cpu", "/ full", "min", "over idle")
    rows = [
        (
            name + ("*" if cost.all_rounds else ""),
            f"{1e3 * cost.seconds:.0f}",
            _interval(cost.floor),
            f"{cost.floor.least:.3f}",
            f"{cost.cpu.median:.3f}",
            f"{cost.full.median:.3f}",
            f"{cost.full.least:.3f}",
            f"{cost.memory / 2**20:.0f} MiB",
        )
        for name, cost in costs.items()
    ]
    sides = ("left", *["right"] * (len(head) - 1))
    return tabulate(rows, head, tablefmt="plain", disable_numparse=True, colalign=sides)


def _interval(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def comparisons(costs: dict[str, PlanCost]) -> list[str]:
    """Time and memory of each plan that has a reference, over those of the reference."""
    return [
        f"{'' if index else chr(10)}{name} / {reference_of(name)}: time {_interval(ratio)}, "
        f"min {ratio.least:.3f}; memory {cost.memory / costs[reference_of(name)].memory:.3f}"
        for index, (name, cost, ratio) in enumerate(
            (name, cost, cost.reference) for name, cost in costs.items() if cost.reference
        )
    ]


def load_note(costs: dict[str, PlanCost], rounds: int) -> list[str]:
    """The number of measurements that other processes disturbed."""
    disturbed = sum(cost.disturbed for cost in costs.values())
    lines = [
        f"\n{disturbed} of {rounds * len(costs)} measurements met more than {DISTURBED} core of "
        "other processes' load and are left out."
    ]
    if any(cost.all_rounds for cost in costs.values()):
        lines.append(
            "* Too few undisturbed rounds: the figures include all rounds, and the cpu column is "
            "more reliable."
        )
    return lines


if __name__ == "__main__":
    main()
