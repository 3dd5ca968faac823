"""Feed changed inputs to loaders in this process; one line of JSON for each input on stdout."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutators import CANARY, fresh
from fuzz.target import Target
from fuzz.targets import TARGETS

HEADROOM = 2 << 30  # address space beyond what the imports took
STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn")


class Watch:
    """Notes each process that is started while it is on, which no loader may do."""

    def __init__(self) -> None:
        self.on, self.seen = False, list[str]()
        sys.addaudithook(self._note)

    def _note(self, event: str, _: tuple[Any, ...]) -> None:
        if self.on and event in STARTS:
            self.seen.append(event)

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        self.on, self.seen = True, []
        try:
            yield self.seen
        finally:
            self.on = False


def _status(name: str) -> float:
    """An entry of this process's status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0.0


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def one(target: Target, valid: Any, work: Path, watch: Watch) -> dict[str, Any]:
    """Load one input and judge what happened."""
    before = target.state()
    _reset_peak()
    rss, start = _status("VmRSS"), time.perf_counter()
    with watch.watching() as started:
        outcome, why, result = _load(target, work)
    seconds, mib = time.perf_counter() - start, max(0.0, _status("VmHWM") - rss)
    if started or Path(CANARY).exists():
        outcome, why = "failed", f"something was executed: {started or CANARY}"
        Path(CANARY).unlink(missing_ok=True)
    elif outcome == "accepted":
        outcome, why = _judge(target, valid, work, result)
    elif outcome == "refused" and target.state() != before:
        outcome, why = "failed", f"changed by an input that was refused: {why}"
    if outcome != "failed" and (seconds > target.seconds or mib > target.mib):
        outcome, why = "failed", f"took {seconds:.1f} s and {mib:.0f} MiB"
    return {"outcome": outcome, "why": why, "seconds": seconds, "mib": mib}


def _load(target: Target, work: Path) -> tuple[str, str, Any]:
    try:
        return "accepted", "", target.load(work)
    except target.errors as error:
        # Subclasses of a documented type that are bugs of the loader.
        if isinstance(error, UnicodeError | json.JSONDecodeError) or not str(error):
            return "failed", traceback.format_exc(limit=-6), None
        return "refused", f"{type(error).__name__}: {str(error)[:300]}", None
    except BaseException:
        return "failed", traceback.format_exc(limit=-6), None


def _judge(target: Target, valid: Any, work: Path, result: Any) -> tuple[str, str]:
    if result == valid:
        return "equal", ""
    if target.detects:
        return "failed", "changed content was accepted"
    problem = target.problem(work, result)
    return ("failed", problem) if problem else ("different", "")


def main() -> None:
    """Arguments: seed, folder, and jobs as JSON: lists of a target, its first and last input."""
    warnings.simplefilter("ignore")
    seed, folder, jobs = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    watch = Watch()
    for name, first, last in jobs:
        _run(TARGETS[name](), seed, range(first, last), folder / name.replace(" ", "_"), watch)


def _run(target: Target, seed: str, inputs: range, folder: Path, watch: Watch) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    valid_folder, work = folder / "valid", folder / "work"
    shutil.rmtree(valid_folder, ignore_errors=True)  # of a child that died
    valid_folder.mkdir()
    target.write(valid_folder)
    fresh(valid_folder, work)
    valid = target.load(work)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, ((int(_status("VmSize")) << 20) + HEADROOM, hard))
    for index in inputs:
        draw = Random(f"{seed} {target.name} {index}")
        fresh(valid_folder, work)
        change = target.change(work, draw)
        _print({"begin": index, "target": target.name, "change": change})
        _print({"index": index, **one(target, valid, work, watch)})


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
