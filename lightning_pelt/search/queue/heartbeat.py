"""Heartbeats: which process holds an entry of the ledger, and whether that process still runs."""

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

import psutil
from optuna.exceptions import UpdateFinishedTrialError

INTERVAL = 10.0  # seconds between two heartbeats
TIMEOUT = 120.0  # seconds without a heartbeat after which other hosts treat a process as dead
DAY = 86_400.0  # seconds by which no clock is wrong
_TICKS = 100  # per second, the unit of start times in the ledger

_logger = logging.getLogger(__name__)


def process_stamp() -> dict[str, Any]:
    """The identity of this process and the current time, as plain data."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "where": _pid_scope(),
        "pid": pid,
        "born": _start_time(pid),
        "time": time.time(),
    }


def is_alive(stamp: Mapping[str, Any], timeout: float) -> bool:
    """Whether the process that wrote a stamp still runs.

    For a process of this host the process table decides; its start time distinguishes it from a
    later process with the same number. For a process of another host the age of the stamp decides,
    by the clocks of both hosts.
    """
    if _is_of_this_host(stamp):
        return _start_time(stamp["pid"]) == stamp["born"]
    return time.time() - stamp["time"] <= timeout


def _is_of_this_host(stamp: Mapping[str, Any]) -> bool:
    same = stamp["host"] == socket.gethostname() and stamp["where"] == _pid_scope()
    return same and bool(stamp["born"])


class Witness:
    """Watches heartbeats, so that a host with a wrong clock does not lose its jobs.

    A heartbeat of another host that is too old, or from the future, may come from a clock that is
    wrong. Its process is dead once this process has seen no other heartbeat for three intervals, or
    if the heartbeat is older than a day.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, float]] = {}  # last heartbeat, and since when it is there

    def is_silent(self, trial: int, stamp: Mapping[str, Any] | None, timeout: float) -> bool:
        """Whether the process that holds ``trial`` is dead.

        Args:
            trial: id of an entry of the ledger.
            stamp: its last heartbeat; None if there is none yet.
            timeout: seconds without a heartbeat after which a process is dead.
        """
        now, mark = time.monotonic(), None if stamp is None else stamp["time"]
        last, since = self._seen.setdefault(trial, (mark, now))
        if last != mark:
            self._seen[trial], since = (mark, now), now
        if stamp is None:
            return now - since > timeout
        if _is_of_this_host(stamp) or 0 <= (age := time.time() - stamp["time"]) <= timeout:
            return not is_alive(stamp, timeout)
        return age > DAY or now - since > 3 * INTERVAL


@cache
def _pid_scope() -> str:
    """Boot, container and user for which process numbers are valid; empty if unknown."""
    # Host names are not unique: containers do not see each other's processes, and unnamed machines
    # share a default name. Some systems hide the processes of other users.
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()} {os.getuid()}"
    except OSError:
        return ""


def _start_time(pid: int) -> int | None:
    """Start of a process in ticks since boot; None if the process has ended or is not visible."""
    # Relative to boot, the value does not change when the system clock is set.
    boot = psutil.boot_time()
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return round((process.create_time() - boot) * _TICKS)
    except psutil.Error:
        return None


class Heartbeat:
    """Writes heartbeats from a thread while a ``with`` block runs.

    Args:
        write: writes one heartbeat.

    Attributes:
        lost: whether the entry was taken away because heartbeats came too late.
    """

    def __init__(self, write: Callable[[], None]) -> None:
        self.lost = False
        self._write = write
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5)  # a server that hangs must not delay the exit

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                self._write()
            except UpdateFinishedTrialError:
                self.lost = True
                return
            except Exception as error:  # the server may recover before the timeout
                _logger.warning("writing a heartbeat failed: %s", error)
