"""A worker for tests of pipes, in a module that other processes can import."""

from __future__ import annotations

from typing import Any

from processes import TIMEOUT


def answer(queue: Any, transport: Any, number: int) -> None:
    """A worker that answers until it reads None."""
    while (request := queue.get(timeout=TIMEOUT)) is not None:
        consumer, body = request
        transport.send((number, body), consumer_id=consumer)
