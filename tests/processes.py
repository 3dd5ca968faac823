"""Second processes for tests, forked from a server that has imported the package once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# All tests of a process share one server, which imports what the first of them needs.
CONTEXT.set_forkserver_preload(
    ["lightning_pelt.profiles.store", "lightning_pelt.benchmark.contestants"]
)
TIMEOUT = 60  # seconds


@contextmanager
def second_process(
    target: Callable[..., None], *args: Any
) -> Iterator[tuple[ForkServerProcess, Connection]]:
    """Run ``target(connection, *args)`` for a ``with`` block; gives the process and its pipe."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=target, args=(there, *args), daemon=True)
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
