"""Fits that are killed at random moments and resumed, compared with one that is not; a script.

It imports the package once and forks a process for every fit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from training.continued import Run, tuned
from training.test_resume_strangers import strange

from lightning_pelt.utils.files import write_aside

LIMIT = 120  # seconds of one fit
END = "end.pt"
KINDS: dict[str, Callable[..., Run]] = {"module": tuned, "callback": strange}


def fit(folder: Path, backbone: str, kind: str) -> None:
    """Begin or resume a fit of thirty steps, with checkpoints every second step."""
    saving = ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_last=True)
    last = folder / "last.ckpt"
    resume = last if last.exists() else None
    run = KINDS[kind](folder, backbone, saving, resume=resume, batches=5, max_epochs=6)
    end = {"state": run.state, "pruned": run.pruned}
    write_aside(folder / END, lambda aside: torch.save(end, aside))


def kill_after(seconds: float | None, *fitted: object) -> tuple[bool, float]:
    """Fit in a process that is killed; returns whether it was, and how long it ran."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        try:
            fit(*fitted)  # type: ignore[arg-type]
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    end = start + (LIMIT if seconds is None else seconds)
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"a fit ended with status {status}"
            return False, time.monotonic() - start
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert seconds is not None, f"a fit took more than {LIMIT} seconds"
    return True, seconds


def read_all(folder: Path) -> tuple[int, int]:
    """Read every file under its final name; returns their number and that of leftovers."""
    files = sorted(folder.glob("*.ckpt")) if folder.exists() else []
    for file in files:
        torch.load(file, weights_only=True)
    return len(files), len(list(folder.glob(".*"))) if folder.exists() else 0


def assert_same_end(folder: Path, whole: Path) -> None:
    one, other = (torch.load(path / END, weights_only=True) for path in (folder, whole))
    assert one["pruned"] == other["pruned"]
    for name in one["state"].keys() | other["state"].keys():
        pair = [each["state"].get(name) for each in (one, other)]
        if None in pair:  # moments of parameters that are held are missing or zeros
            assert not any(value.any() for value in pair if value is not None), name
        else:
            assert torch.equal(*pair), name


def kill_and_resume(folder: Path, backbone: str, kind: str, kills: int, seed: int) -> Counter[str]:
    """Kill fits at random moments until there were so many kills; each one is resumed."""
    draw = random.Random(seed)
    whole = folder / "whole"
    _, duration = kill_after(None, whole, backbone, kind)
    seen: Counter[str] = Counter()
    while seen["kills"] < kills:
        run, killed = folder / f"run{seen['runs']}", True
        while killed:
            after = draw.uniform(0, duration) if seen["kills"] < kills else None
            killed, _ = kill_after(after, run, backbone, kind)
            read, leftovers = read_all(run)
            assert leftovers <= killed, "temporary files of earlier kills are still there"
            seen.update(kills=killed, read=read, leftovers=leftovers)
        assert_same_end(run, whole)
        seen.update(runs=1)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("backbone")
    parser.add_argument("kinds", nargs="+", choices=[*KINDS])
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for kind in asked.kinds:
        place = asked.folder / kind
        print(kind, dict(kill_and_resume(place, asked.backbone, kind, asked.kills, asked.seed)))


if __name__ == "__main__":
    main()
