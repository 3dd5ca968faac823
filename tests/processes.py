"""Further processes of tests, forked from a server that has imported the package once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

# What takes long to import. None may start a thread: forks would lack it. (The one of jemalloc in
# pyarrow is harmless: jemalloc prepares itself for forks.)
PRELOAD = [
    *("pytest", "sqlite3", "psycopg", "sqlalchemy.dialects.postgresql.psycopg"),
    *("lightning_pelt.profiles.store", "lightning_pelt.benchmark.contestants"),
    *("search.worker_process", "twenty_steps", "fsdp1_steps", "tensor_parallel_steps"),
    *("profiles.sharded_profiles", "faults.killed_fits", "lightning_pelt.cli.base"),
]
TIMEOUT = 60  # seconds


def context() -> ForkServerContext:
    """The server's context; starts the server, which all tests of this process share.

    It is a new process that has run nothing, so that its forks find no lock taken by a thread.
    """
    found = multiprocessing.get_context("forkserver")
    before = os.environ.get("PYTHONPATH")
    # The server does not get this process's sys.path, and skips modules that it does not find.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        found.set_forkserver_preload(PRELOAD)
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return found


@contextmanager
def second_process(
    target: Callable[..., None], *args: Any
) -> Iterator[tuple[ForkServerProcess, Connection]]:
    """Run ``target(connection, *args)`` for a ``with`` block; gives the process and its pipe."""
    server = context()
    here, there = server.Pipe()
    process = server.Process(target=target, args=(there, *args), daemon=True)
    process.start()
    there.close()
    try:
        yield process, here
    finally:
        process.kill()
        process.join()


def receive(connection: Connection) -> Any:
    """The next message of a process."""
    assert connection.poll(TIMEOUT), f"the process sent nothing for {TIMEOUT} seconds"
    return connection.recv()
