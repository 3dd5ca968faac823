"""Processes of a server: when they end, and when they do not."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import wait
from multiprocessing.managers import SyncManager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def end_with_parent() -> None:
    """End this process when the process that started it has ended, even if it was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def start_manager() -> SyncManager:
    """A process for the queues of a server, which its signals do not end before the server."""
    manager = SyncManager()
    manager.start(_stay)
    return manager


def _stay() -> None:
    """A service manager such as systemd sends a signal to all processes of a server."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
