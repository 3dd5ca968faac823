"""Processes of a search with fits of milliseconds, which test_search_ledger.py starts and kills."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lightning_pelt.search import alive, worker
from lightning_pelt.search.cell import Cell, Outcome
from lightning_pelt.search.ledger import Ledger
from lightning_pelt.search.storage import _Lock

SETTINGS = {"model": "tiny", "tasks": [{"name": "rte", "rows": 100}]}
STALE = 1.0
STEP = 6  # cells that a leader asks for at once


def cells(count: int) -> list[Cell]:
    return [Cell({"blocks": {"0": ["lora", i]}}, "rte", i, label=f"cell {i}") for i in range(count)]


def outcome_of(cell: Cell) -> Outcome:
    """Every tenth cell diverges."""
    score = None if cell.seed % 10 == 9 else float(cell.seed)
    return Outcome(score, seconds=1.5, metrics={"loss": float("nan")} if score is None else {})


def fit(log: str, cell: Cell) -> Outcome:
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{cell.key}\n".encode())
    os.close(file)
    hashlib.pbkdf2_hmac("sha256", b"a fit", b"", 20_000)
    return outcome_of(cell)


def _open(storage: str) -> Ledger:
    alive.BEAT, worker.POLL = 0.1, 0.05
    return Ledger(storage, "search", SETTINGS)


def run_worker(storage: str, log: str) -> None:
    worker.work(_open(storage), partial(fit, log), older_than=STALE)


def run_leader(storage: str, log: str, enough: str) -> None:
    """Ask for some cells, for the next once they are finished, and so on while there is no file."""
    ledger, wanted = _open(storage), cells(STEP)
    with ledger.lead(STALE):
        while True:
            if ledger.outcomes().keys() >= {cell.key for cell in wanted}:
                counts = ledger.counts()
                others = counts.waiting + counts.running  # that a leader before this one asked for
                if not others and Path(enough).exists():
                    break
                wanted = cells(len(wanted) + STEP)
            ledger.enqueue(wanted)
            ledger.reap(STALE)
            if not worker.work_one(ledger, partial(fit, log)):
                time.sleep(worker.POLL)
        ledger.finished = True


def run_until_told(storage: str, log: str, hang: bool = True) -> None:
    """A worker whose fits never end, or one that raises."""
    # A shell that starts the tests in the background lets all of its children ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    worker.work(_open(storage), partial(_never, log) if hang else _bug, older_than=STALE)


def _never(log: str, cell: Cell) -> Outcome:
    fit(log, cell)
    while True:
        signal.pause()


def _bug(cell: Cell) -> Outcome:
    raise ArithmeticError(f"a bug in {cell.label}")


def die_at_write(storage: str, log: str, act: str, number: int, how: str) -> None:
    """Do something and be killed at its n-th write to the journal: before, in or after it."""
    ledger = _open(storage)
    alive.BEAT = 1e6  # the writes that are counted are those below
    _kill_at(number, how, storage)
    if act == "work":
        worker.work_one(ledger, partial(fit, log))
    elif act == "release" and (claim := ledger.claim()):
        ledger.release(claim)
    elif act == "enqueue":
        ledger.enqueue(cells(3))
    elif act == "lead":
        with ledger.lead(STALE):
            pass
    raise SystemExit("there were not so many writes")


def _kill_at(number: int, how: str, storage: str) -> None:
    acquire, fsync, count = _Lock.acquire, os.fsync, 0

    def turn(lock: _Lock) -> bool:
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

    def flush(file: int) -> None:
        fsync(file)
        if count == number:  # the line is there, and the turn not over
            _die()

    _replace(turn, flush)


def _replace(turn: Callable[[Any], bool], flush: Callable[[int], None]) -> None:
    _Lock.acquire = turn  # type: ignore[method-assign]
    os.fsync = flush  # type: ignore[assignment]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
