"""The worker loop: take a job, run it, record its outcome."""

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

from lightning_pelt.search.queue.heartbeat import TIMEOUT
from lightning_pelt.search.queue.job import Job, Outcome
from lightning_pelt.search.queue.ledger import Ledger

POLL = 1.0  # seconds between two reads of an empty queue

_logger = logging.getLogger(__name__)


def work(
    ledger: Ledger,
    run: Callable[[Job], Outcome],
    *,
    idle: Callable[[], bool] = lambda: True,
    timeout: float = TIMEOUT,
) -> int:
    """Run the ledger's jobs until the search is finished.

    SIGTERM and Ctrl-C return the running job to the queue and end the process.

    Args:
        ledger: of the search.
        run: trains and scores one job.
        idle: called when the queue is empty; False ends the loop.
        timeout: see :meth:`Ledger.reap`, which is called when no job waits.

    Returns:
        Number of jobs that this call took, whether they succeeded or not.
    """
    taken = 0
    with exit_on_sigterm():
        while not ledger.finished:
            if work_one(ledger, run):
                taken += 1
            elif ledger.reap(timeout):
                continue
            elif idle():
                time.sleep(POLL)
            else:
                break
    return taken


def work_one(ledger: Ledger, run: Callable[[Job], Outcome]) -> bool:
    """Run the job that has waited longest, if there is one.

    An exception of ``run`` is recorded in the ledger (:meth:`Ledger.fail`). If the process is
    ended, for example by Ctrl-C, the job is returned to the queue first.

    Returns:
        Whether a job was waiting.
    """
    claim = ledger.claim()
    if claim is None:
        return False
    name = claim.job.label or claim.job.key
    with ledger.hold(claim):
        try:
            outcome = run(claim.job)
        except Exception:
            _logger.warning("%s failed:\n%s", name, error := traceback.format_exc())
            ledger.fail(claim, error)
            return True
        except BaseException:
            ledger.release(claim)
            print(f"stopped: {name} is back in the queue", file=sys.stderr)
            raise
        if not ledger.finish(claim, outcome):
            _logger.warning("%s was taken away: the heartbeats of this process came too late", name)
    return True


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into ``SystemExit``, so that the process cleans up before it ends."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
