"""Pipes between the processes of a server, which no third process reads and writes again."""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from typing import Any

from litserve.transport.base import MessageTransport

_SPAWN = multiprocessing.get_context("spawn")  # as LitServe starts workers


def request_queue() -> Queue[Any]:
    """A queue from HTTP servers, which do not wait while its pipe is full, to workers."""
    return _SPAWN.Queue()


class PipeTransport(MessageTransport):
    """A pipe from all workers to each HTTP server, whose event loop waits for it without a thread.

    Args:
        consumers: number of processes with an HTTP server.
    """

    def __init__(self, consumers: int) -> None:
        self._pipes = [_SPAWN.Pipe(duplex=False) for _ in range(consumers)]
        self._locks = [_SPAWN.Lock() for _ in range(consumers)]

    def send(self, item: Any, consumer_id: int) -> None:
        """Send the answer to a request; called in a worker."""
        with self._locks[consumer_id]:
            self._pipes[consumer_id][1].send(item)

    async def areceive(self, consumer_id: int, timeout: float | None = None) -> Any:
        """The next answer for an HTTP server; None if there is none within ``timeout`` seconds."""
        reader = self._pipes[consumer_id][0]
        if not reader.poll():
            try:
                await asyncio.wait_for(_readable(reader), timeout)
            except asyncio.TimeoutError:  # before Python 3.11 not the builtin one
                return None
        return reader.recv()

    def close(self, send_sentinel: bool = True) -> None:
        """Nothing waits in a thread that had to be told."""


async def _readable(reader: Connection) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        loop.remove_reader(reader.fileno())
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(reader.fileno(), tell)
    try:
        await ready
    finally:
        loop.remove_reader(reader.fileno())
