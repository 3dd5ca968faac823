"""Run targets in child processes, and keep the figures."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
HANG = 60.0  # seconds without a line from a child; an input has 20 s at most
START = 180.0  # until the first line: imports, and writing the valid input


@dataclass
class Figures:
    """What happened to the inputs of one target.

    Attributes:
        outcomes: numbers of inputs that were refused, accepted (equal, different) or failed.
        seconds: of the slowest input.
        mib: of the input that needed most memory.
        failures: number of the input, what was changed, and why it failed.
    """

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    mib: float = 0.0
    failures: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, change: str, line: dict[str, Any]) -> None:
        self.outcomes[line["outcome"]] += 1
        self.seconds = max(self.seconds, line["seconds"])
        self.mib = max(self.mib, line["mib"])
        if line["outcome"] == "failed":
            self.failures.append((line["index"], change, line["why"]))


def fuzz(
    names: Sequence[str],
    *,
    seed: int,
    inputs: int,
    folder: Path,
    done: Callable[[], Any] = lambda: None,
) -> dict[str, Figures]:
    """Feed ``inputs`` changed inputs to each target, in one child process while it lives.

    A child that hangs or dies is replaced, and the input at which it did has failed.
    An interrupt ends the run with the figures so far.
    """
    figures = {name: Figures(name) for name in names}
    while jobs := [
        (name, found.outcomes.total(), inputs)
        for name, found in figures.items()
        if found.outcomes.total() < inputs
    ]:
        try:
            _child(figures, seed, jobs, folder, done)
        except KeyboardInterrupt:  # the figures so far
            break
    return figures


def _child(
    figures: dict[str, Figures],
    seed: int,
    jobs: Sequence[tuple[str, int, int]],
    folder: Path,
    done: Callable[[], Any],
) -> None:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    log = folder / "stderr.txt"
    with log.open("wb") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "fuzz.child", str(seed), str(folder), json.dumps(jobs)],
            stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=TESTS,
        )  # fmt: skip
    current: dict[str, Any] | None = None
    lines = 0
    try:
        assert child.stdout is not None
        while select.select([child.stdout], [], [], HANG if lines else START)[0]:
            if not (line := child.stdout.readline()):
                break
            if not line.startswith(b"{"):
                continue
            found = json.loads(line)
            lines += 1
            if "begin" in found:
                current = found
            elif current is not None:
                figures[current["target"]].add(current["change"], found)
                current = None
                done()
        if current is None and child.poll() is None:
            child.wait(timeout=10)
        why = "hangs" if child.poll() is None else f"the process ended with {child.returncode}"
    finally:
        child.kill()
        child.wait()
    tail = log.read_text(errors="replace")[-2000:]
    if current is not None:
        failure = {"outcome": "failed", "why": f"{why}: {tail}", "seconds": 0.0, "mib": 0.0}
        figures[current["target"]].add(current["change"], {"index": current["begin"], **failure})
    elif child.returncode != 0:
        raise RuntimeError(f"a child did not start: {tail}")
