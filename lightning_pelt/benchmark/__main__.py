"""The command line of the benchmark."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from lightning_pelt.benchmark.contestant import APL, FLOOR, FULL, PLANS, RIVALS, Setting
from lightning_pelt.benchmark.monitor import monitor_share
from lightning_pelt.benchmark.race import DISTURBED, Ratio, Standing, Worker, race
from lightning_pelt.errors import unknown


def parser() -> argparse.ArgumentParser:
    default = Setting()
    options = argparse.ArgumentParser(
        prog="python -m lightning_pelt.benchmark",
        description="Step time and memory of each plan on a BERT of random weights.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--plans", nargs="+", default=list(PLANS), metavar="PLAN", type=_plan)
    options.add_argument("--rounds", type=int, default=12, help="turns of every plan")
    options.add_argument("--steps", type=int, default=2, help="training steps of a turn")
    options.add_argument("--device", default=default.device)
    options.add_argument("--blocks", type=int, default=default.blocks)
    options.add_argument("--width", type=int, default=default.width)
    options.add_argument("--batch", type=int, default=default.batch, help="rows of a batch")
    options.add_argument("--length", type=int, default=default.length, help="tokens of a row")
    options.add_argument("--threads", type=int, default=default.threads)
    options.add_argument("--monitor-every", type=int, default=10, help="steps between two readings")
    options.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return options


def _plan(name: str) -> str:
    if name not in PLANS:
        raise argparse.ArgumentTypeError(str(unknown("plan", name, PLANS)))
    return name


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print a table, and return the figures."""
    given = parser().parse_args(args)
    setting = Setting(
        device=given.device,
        blocks=given.blocks,
        width=given.width,
        batch=given.batch,
        length=given.length,
        threads=given.threads,
    )
    names = list(dict.fromkeys([FLOOR, FULL, *given.plans]))
    standings = race(names, setting, rounds=given.rounds, steps=given.steps)
    print(heading(setting, given.rounds, given.steps), *table(standings), sep="\n")
    print(*rivals(standings), *load_note(standings, given.rounds), sep="\n")
    figures: dict[str, Any] = {
        "setting": asdict(setting),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "plans": {name: asdict(standing) for name, standing in standings.items()},
    }
    if APL in names:
        with Worker() as worker:
            share = worker.run(monitor_share, setting, every_n_steps=given.monitor_every)
        figures["gate_monitor"] = share
        print(f"GateMonitor every {given.monitor_every} steps: {100 * share:.2f}% of a step's time")
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def heading(setting: Setting, rounds: int, steps: int) -> str:
    return (
        f"BERT {setting.blocks} x {setting.width}, batch {setting.batch} x {setting.length}, fp32, "
        f"{setting.device}, {setting.threads} threads, {rounds} rounds of {steps} steps; "
        f"torch {torch.__version__}, {platform.machine()}\n"
    )


def table(standings: dict[str, Standing]) -> list[str]:
    """Rows of figures: medians over rounds, quartiles in brackets, ratios of minima."""
    head = ("plan", "step ms", "/ floor [quartiles]", "min", "cpu", "/ full", "min", "over idle")
    rows = [
        (
            name + ("*" if s.kept else ""),
            f"{1e3 * s.seconds:.0f}",
            _interval(s.floor),
            f"{s.floor.least:.3f}",
            f"{s.cpu.median:.3f}",
            f"{s.full.median:.3f}",
            f"{s.full.least:.3f}",
            f"{s.memory / 2**20:.0f} MiB",
        )
        for name, s in standings.items()
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (head, *rows)
    ]


def _interval(ratio: Ratio) -> str:
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def rivals(standings: dict[str, Standing]) -> list[str]:
    """Plans against the plan each of them should not be slower, or larger, than."""
    return [
        f"{'' if index else chr(10)}{name} / {RIVALS[name]}: time {_interval(s.rival)}, "
        f"min {s.rival.least:.3f}; memory {s.memory / standings[RIVALS[name]].memory:.3f}"
        for index, (name, s) in enumerate((n, s) for n, s in standings.items() if s.rival)
        if s.rival is not None
    ]


def load_note(standings: dict[str, Standing], rounds: int) -> list[str]:
    """How quiet the machine was."""
    bad = sum(standing.disturbed for standing in standings.values())
    lines = [
        f"\n{bad} of {rounds * len(standings)} turns met more than {DISTURBED} core of other "
        "processes' load and are left out."
    ]
    if any(standing.kept for standing in standings.values()):
        lines.append("* Too few quiet rounds: they are all in, and the cpu column is worth more.")
    return lines


if __name__ == "__main__":
    main()
