"""Processes of a search with fits of milliseconds, which test_ledger.py starts and kills."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning_pelt.search.queue import heartbeat, worker
from lightning_pelt.search.queue.job import Job, Outcome
from lightning_pelt.search.queue.ledger import Ledger
from lightning_pelt.search.queue.storage import _JournalLock

SETTINGS = {"model": "tiny", "tasks": [{"name": "rte", "rows": 100}]}
TIMEOUT = 1.0
STEP = 6  # jobs that a controller asks for at once


def jobs(count: int) -> list[Job]:
    return [Job({"blocks": {"0": ["lora", i]}}, "rte", i, label=f"job {i}") for i in range(count)]


def outcome_of(job: Job) -> Outcome:
    """Every tenth job diverges."""
    score = None if job.seed % 10 == 9 else float(job.seed)
    return Outcome(score, seconds=1.5, metrics={"loss": float("nan")} if score is None else {})


def fit(log: str, job: Job) -> Outcome:
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{job.key}\n".encode())
    os.close(file)
    hashlib.pbkdf2_hmac("sha256", b"a fit", b"", 20_000)
    return outcome_of(job)


def _open(storage: str) -> Ledger:
    heartbeat.INTERVAL, worker.POLL = 0.1, 0.05
    return Ledger(storage, "search", SETTINGS)


def run_worker(storage: str, log: str) -> None:
    worker.work(_open(storage), partial(fit, log), timeout=TIMEOUT)


def run_controller(storage: str, log: str, enough: str) -> None:
    """Ask for some jobs, then for the next ones, until the file ``enough`` exists."""
    ledger, wanted = _open(storage), jobs(STEP)
    with ledger.lead(TIMEOUT):
        while True:
            if ledger.outcomes().keys() >= {job.key for job in wanted}:
                counts = ledger.counts()
                others = counts.waiting + counts.running  # asked for by an earlier controller
                if not others and Path(enough).exists():
                    break
                wanted = jobs(len(wanted) + STEP)
            ledger.enqueue(wanted)
            ledger.reap(TIMEOUT)
            if not worker.work_one(ledger, partial(fit, log)):
                time.sleep(worker.POLL)
        ledger.finished = True


def run_until_stopped(storage: str, log: str, hang: bool = True) -> None:
    """A worker whose fits never end, or raise an error."""
    # A shell that starts the tests in the background makes its children ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker.work(_open(storage), partial(_hang, log) if hang else _bug, timeout=TIMEOUT)


def _hang(log: str, job: Job) -> Outcome:
    fit(log, job)
    while True:
        signal.pause()


def _bug(job: Job) -> Outcome:
    raise ArithmeticError(f"a bug in {job.label}")


def die_at_write(storage: str, log: str, act: str, number: int, how: str) -> None:
    """Act on the ledger and be killed before, in or after the n-th write to the journal."""
    ledger = _open(storage)
    heartbeat.INTERVAL = 1e6  # only the writes below are counted
    _kill_at(number, how, storage)
    if act == "work":
        worker.work_one(ledger, partial(fit, log))
    elif act == "release" and (claim := ledger.claim()):
        ledger.release(claim)
    elif act == "enqueue":
        ledger.enqueue(jobs(3))
    elif act == "lead":
        with ledger.lead(TIMEOUT):
            pass
    raise SystemExit(f"there were fewer than {number} writes")


def _kill_at(number: int, how: str, storage: str) -> None:
    acquire, fsync, count = _JournalLock.acquire, os.fsync, 0

    def counted_acquire(lock: _JournalLock) -> bool:
        nonlocal count
        count += 1
        if count == number and how == "before":
            _die()
        acquire(lock)
        if count == number and how == "in":
            with open(storage, "ab") as file:  # noqa: PTH123
                file.write(b'{"op_code":8,"worker_id":"12')
            _die()
        return True

    def counted_fsync(file: int) -> None:
        fsync(file)
        if count == number:  # the line is written, and the lock is still held
            _die()

    _replace(counted_acquire, counted_fsync)


def _replace(acquire: Callable[[Any], bool], fsync: Callable[[int], None]) -> None:
    _JournalLock.acquire = acquire  # type: ignore[method-assign]
    os.fsync = fsync  # type: ignore[assignment]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
