"""Forked processes of tests: they end with the test process, and none waits for another for long.

A test process has threads (of loggers, servers and torch), and a child that is forked while one of
them holds a lock may wait for it forever. That is rare, and in the tests alone: users fork from a
script. Such a child ends with an error after a minute, and the test runs again (``--only-rerun`` in
``pyproject.toml``).
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
from datetime import timedelta
from typing import Any

import torch.distributed

PATIENCE = timedelta(seconds=60)  # of a process for another
PR_SET_PDEATHSIG = 1


def prepare() -> None:
    """Prepare this process for forks."""
    os.register_at_fork(before=_remember, after_in_child=_begin)
    start = torch.distributed.init_process_group

    def init_process_group(*args: Any, **options: Any) -> None:
        start(*args, **{**options, "timeout": PATIENCE})

    torch.distributed.init_process_group = init_process_group


def _remember() -> None:
    _forking.main = threading.current_thread() is threading.main_thread()


def _begin() -> None:
    # A child must not collect what its parent left: the destructor of a process group waits there
    # for processes that the child does not have.
    gc.freeze()
    if _forking.main and sys.platform == "linux":  # else it would end with the thread that forked
        # An orphan would keep the pipe to pytest-xdist open, which would wait for its worker.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class _Forking(threading.local):
    main = False


_forking = _Forking()
