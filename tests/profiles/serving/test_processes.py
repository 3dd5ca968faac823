"""A process of a server ends with the process that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection, wait

import pytest
from processes import TIMEOUT, receive

from lightning_pelt.profiles.serving._processes import end_with_parent, start_manager

FORK = multiprocessing.get_context("fork")


def serve(test: Connection) -> None:
    end_with_parent()
    test.send(os.getpid())
    signal.pause()


def start_server(test: Connection) -> None:
    FORK.Process(target=serve, args=(test,)).start()
    signal.pause()


def manage(test: Connection) -> None:
    manager = start_manager()
    found = manager.list(["kept"])
    pid = manager._process.pid  # type: ignore[attr-defined]
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(pid, number)
    test.send(pid if found[0] == "kept" else None)
    signal.pause()


@pytest.mark.parametrize("start", [start_server, manage])
def test_a_process_ends_with_its_parent(start: object) -> None:
    """And the manager only then, not by a signal."""
    here, there = FORK.Pipe()
    parent = FORK.Process(target=start, args=(there,))  # type: ignore[arg-type]
    parent.start()
    try:
        child = os.pidfd_open(receive(here))
        early = wait([child], 0)
    finally:
        parent.kill()
        parent.join()
    ended = wait([child], TIMEOUT)
    if not ended:
        signal.pidfd_send_signal(child, signal.SIGKILL)
    os.close(child)
    assert ended and not early


def test_the_first_process_has_no_parent_to_follow() -> None:
    end_with_parent()
