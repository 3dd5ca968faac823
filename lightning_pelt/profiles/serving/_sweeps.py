"""Deleted profiles leave the memory of all workers of a server."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections.abc import Callable

EVERY = 1.0  # seconds between two looks at the store, for deletions by other programs
POLL = 0.01
STOP = 3.0  # seconds for a thread to end, unless it waits for the store

_logger = logging.getLogger(__name__)


class Sweeps:
    """Each worker compares its cache with the store, every second or when somebody asks for it.

    Args:
        workers: number of processes with a cache, which are numbered from 0.
    """

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")  # as LitServe starts workers
        self._asked = [context.Semaphore(0) for _ in range(workers)]
        # When the last complete comparison of each worker began, of the clock of the machine.
        self._began = context.RawArray("d", workers)

    def start(self, worker: int, sweep: Callable[[], None]) -> Callable[[], None]:
        """Call ``sweep`` in a thread of a worker, until the function that is returned is called."""
        stopped = threading.Event()

        def repeat() -> None:
            while True:
                self._asked[worker].acquire(timeout=EVERY)
                if stopped.is_set():
                    return
                self.once(worker, sweep)

        def stop() -> None:
            stopped.set()
            self._asked[worker].release()
            thread.join(STOP)

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        return stop

    def once(self, worker: int, sweep: Callable[[], None]) -> None:
        """Call ``sweep`` and note when, unless it fails."""
        began = time.monotonic()
        try:
            sweep()
        except OSError:  # the store cannot be read, which `/ready` says
            return
        except Exception:
            _logger.exception("deleted profiles may still be in the memory of worker %s", worker)
            return
        self._began[worker] = began

    def wait(self, seconds: float) -> bool:
        """Let all workers sweep now; whether they have within ``seconds``."""
        asked = time.monotonic()
        for one in self._asked:
            one.release()
        while not all(began >= asked for began in self._began):
            if time.monotonic() - asked > seconds:
                return False
            time.sleep(POLL)
        return True
