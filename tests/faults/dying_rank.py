"""Two processes under DDP, one of which is killed or stopped; the other must end. A script."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from callbacks.tiny import trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from small import LABELS, Sentences

from lightning_pelt import GateSchedule, PELTModule, UniPELT

LIMIT = 60  # seconds in which the survivor must end
FAILED = 7  # its exit status
# Seconds that a collective waits: a death is noticed at once, but not a process that hangs.
WAIT = {signal.SIGKILL: 1800, signal.SIGSTOP: 10}


class Dies(Callback):
    """Sends its process a signal in the third call of a hook."""

    def __init__(self, hook: str, rank: int, number: signal.Signals) -> None:
        self.number, self.rank, self.calls = number, rank, 0
        setattr(self, hook, self._count)

    def _count(self, trainer: Any, *args: Any) -> None:
        self.calls += not trainer.sanity_checking
        if self.calls == 3 and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


def fit(folder: Path, backbone: str, hook: str, rank: int, number: signal.Signals) -> None:
    module = PELTModule(backbone, UniPELT(), labels=LABELS, lr=2e-3)
    data = Sentences(backbone, rows_of_train=40, batch_size=2)
    callbacks = [Dies(hook, rank, number), GateSchedule(prune_below=0.01)]
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=WAIT[number]))
    run = trainer(
        folder, *callbacks, strategy=strategy, devices=2, max_epochs=3, val_check_interval=2
    )
    run.fit(module, data)


def start(rank: int, port: int, *fitted: Any) -> int:
    """Fork a process with the environment that torchrun gives, without torchrun's supervision."""
    child = os.fork()
    if child:
        return child
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2", NODE_RANK="0")
    os.environ.update(GROUP_RANK="0", TORCHELASTIC_RUN_ID="none")
    try:
        fit(*fitted)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(FAILED)
    os._exit(0)


def wait_for(child: int, number: int) -> None:
    """Wait until the signal has reached a process."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if found:
            got = os.WSTOPSIG(status) if os.WIFSTOPPED(status) else status
            assert got == number, f"the process to be killed ended with {status}"
            return
        time.sleep(0.01)
    raise AssertionError("the process has not come to the hook")


def ended(child: int, within: float) -> int | None:
    end = time.monotonic() + within
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def try_one(number: signal.Signals, hook: str, rank: int, *fitted: Any) -> None:
    """Send the signal to one of two processes, and wait for the end of the other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [start(one, port, *fitted, hook, rank, number) for one in (0, 1)]
    try:
        wait_for(children[rank], number)
        before = time.monotonic()
        status = ended(children[1 - rank], LIMIT)
        assert status is not None, f"the survivor hangs for {LIMIT} seconds"
        assert status != 0, "the survivor ended as if nothing had happened"
        seconds = time.monotonic() - before
        print(f"{number.name} of rank {rank} in {hook}: the other ended after {seconds:.2f} s")
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("backbone")
    parser.add_argument("signal", choices=["SIGKILL", "SIGSTOP"])
    parser.add_argument("places", nargs="+", help="hooks and ranks, as on_train_start:1")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for place in asked.places:
        hook, _, rank = place.partition(":")
        number = signal.Signals[asked.signal]
        try_one(number, hook, int(rank), asked.folder / place, asked.backbone)


if __name__ == "__main__":
    main()
