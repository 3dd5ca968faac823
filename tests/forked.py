"""Forked processes of tests: they end with the test process, and do not collect its garbage."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
from pathlib import Path

PR_SET_PDEATHSIG = 1

_pipes: list[int] = []  # to the process that hands out the tests


def prepare() -> None:
    """Prepare this process for forks.

    pytest-xdist reads from a pipe until its last writer has gone. A forked process that outlives a
    test that was ended would keep it open, and the run would never end.
    """
    _pipes.extend(_open_pipes())
    os.register_at_fork(before=_remember, after_in_child=_begin)


def _open_pipes() -> list[int]:
    folder = Path("/proc/self/fd")
    files = list(folder.iterdir()) if folder.is_dir() else []
    return [int(f.name) for f in files if int(f.name) > 2 and f.is_fifo()]


def _remember() -> None:
    _forking.main = threading.current_thread() is threading.main_thread()


def _begin() -> None:
    # The destructor of a process group that the parent left waits for threads that are not here.
    gc.freeze()
    null = os.open(os.devnull, os.O_RDWR)
    for pipe in _pipes:
        os.dup2(null, pipe)
    os.close(null)
    if _forking.main and sys.platform == "linux":  # else it would end with the thread that forked
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class _Forking(threading.local):
    main = False


_forking = _Forking()
