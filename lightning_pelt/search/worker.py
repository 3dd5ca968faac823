"""The loop of a worker: take a cell, run it, write down what it came to."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from lightning_pelt.search.alive import STALE
from lightning_pelt.search.cell import Cell, Outcome
from lightning_pelt.search.ledger import Ledger

POLL = 1.0  # seconds between two looks at an empty queue

_logger = logging.getLogger(__name__)


def work(
    ledger: Ledger,
    run: Callable[[Cell], Outcome],
    *,
    idle: Callable[[], bool] = lambda: True,
    older_than: float = STALE,
) -> int:
    """Run the ledger's cells until the search is over.

    SIGTERM and Ctrl-C give the cell that runs back to the queue and end the process.

    Args:
        ledger: of the search.
        run: trains and scores one cell.
        idle: called whenever there is nothing to do; false leaves.
        older_than: see :meth:`Ledger.reap`, which is called whenever no cell waits.

    Returns:
        How many cells this call took, whatever they came to.
    """
    taken = 0
    with stoppable():
        while not ledger.finished:
            if work_one(ledger, run):
                taken += 1
            elif ledger.reap(older_than):
                continue
            elif idle():
                time.sleep(POLL)
            else:
                break
    return taken


def work_one(ledger: Ledger, run: Callable[[Cell], Outcome]) -> bool:
    """Run the cell that waits for longest, if one waits.

    An error of ``run`` goes into the ledger (:meth:`Ledger.fail`). Whatever ends the process, such
    as Ctrl-C, gives the cell back first.

    Returns:
        Whether one waited.
    """
    claim = ledger.claim()
    if claim is None:
        return False
    name = claim.cell.label or claim.cell.key
    with ledger.held(claim):
        try:
            outcome = run(claim.cell)
        except Exception:
            _logger.warning("%s failed:\n%s", name, error := traceback.format_exc())
            ledger.fail(claim, error)
            return True
        except BaseException:
            ledger.release(claim)
            print(f"stopped: {name} is back in the queue", file=sys.stderr)
            raise
        if not ledger.finish(claim, outcome):
            _logger.warning("%s was taken away: no sign of life from here came in time", name)
    return True


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM end this process as an exception does, so that it tidies up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
