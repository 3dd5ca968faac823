"""Who holds something in the ledger, and whether that process is still there."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError

BEAT = 10.0  # seconds between two signs of life
STALE = 120.0  # seconds without one after which another host takes a process for dead

_logger = logging.getLogger(__name__)


def sign_of_life() -> dict[str, Any]:
    """This process, and the time, as plain data."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "where": _where(),
        "pid": pid,
        "born": _born(pid),
        "time": time.time(),
    }


def is_alive(sign: Mapping[str, Any], older_than: float) -> bool:
    """Whether the process that gave this sign of life is there.

    On this host the process itself tells, and the time at which it started tells it from a later
    one with the same number. Of other hosts only the age of the sign is known, for which the
    hosts' clocks must agree to within a small part of ``older_than`` seconds.
    """
    if sign["host"] == socket.gethostname() and sign["where"] == _where() and sign["born"]:
        return _born(sign["pid"]) == sign["born"]
    return time.time() - sign["time"] <= older_than


@cache
def _where() -> str:
    """What the numbers of processes that we see belong to: a boot, a container and a user."""
    # Names of hosts repeat: among containers, which do not see each other's processes, and among
    # machines that nobody named. And some systems hide the processes of other users.
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()} {os.getuid()}"
    except OSError:
        return ""


def _born(pid: int) -> int | None:
    """When the process started, in ticks since boot; None if it is gone, or nobody can tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name comes in brackets, and may have brackets and spaces itself. See proc(5).
    state, *fields = stat.rpartition(b")")[2].split()
    return None if state in b"ZX" else int(fields[18])


class Pulse:
    """Gives signs of life from a thread, for as long as the ``with`` block runs.

    Attributes:
        lost: that what was held was taken away, because signs came too late.
    """

    def __init__(self, beat: Callable[[], None]) -> None:
        self.lost = False
        self._beat = beat
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="signs of life")

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(timeout=5)  # a server that hangs must not hold up the end

    def _run(self) -> None:
        while not self._over.wait(BEAT):
            try:
                self._beat()
            except UpdateFinishedTrialError:
                self.lost = True
                return
            except Exception as error:  # the server may be back before anybody misses us
                _logger.warning("no sign of life could be written: %s", error)
