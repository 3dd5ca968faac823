"""Forked processes of tests: they end with the test process, and do not collect its garbage."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1


def prepare() -> None:
    """Prepare this process for forks.

    The orphans of a test that is ended would keep the pipe open from which pytest-xdist reads, and
    it would wait for their parent forever.
    """
    os.register_at_fork(before=_remember, after_in_child=_begin)


def _remember() -> None:
    _forking.main = threading.current_thread() is threading.main_thread()


def _begin() -> None:
    # The destructor of a process group that the parent left waits for threads that are not here.
    gc.freeze()
    if _forking.main and sys.platform == "linux":  # else it would end with the thread that forked
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class _Forking(threading.local):
    main = False


_forking = _Forking()
