"""Pipes between the processes of a server: nothing is lost, mixed up, or waited for in a thread."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from processes import TIMEOUT, context
from profiles.serving.pipe_worker import answer

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
from lightning_pelt.profiles.serving._pipes import PipeTransport, request_queue

LARGE = "x" * 1_000_000  # more than the pipe holds


async def receive(transport: PipeTransport, consumer: int, count: int) -> list[Any]:
    return [await transport.areceive(consumer, timeout=TIMEOUT) for _ in range(count)]


async def receive_all(transport: PipeTransport, counts: list[int]) -> list[list[Any]]:
    waiting = [receive(transport, consumer, count) for consumer, count in enumerate(counts)]
    return await asyncio.gather(*waiting)


@pytest.mark.slow
def test_two_workers_answer_two_http_servers() -> None:
    """Each server gets the answers to its requests, among them some larger than a pipe."""
    queue, transport = request_queue(), PipeTransport(2)
    given = (queue, transport)
    server = context()
    workers = [server.Process(target=answer, args=(*given, n), daemon=True) for n in (0, 1)]
    for worker in workers:
        worker.start()
    try:
        bodies = [f"{number}" for number in range(40)] + [LARGE]
        for body in bodies:
            for consumer in (0, 1):
                queue.put((consumer, (consumer, body)))
        found = asyncio.run(receive_all(transport, [len(bodies)] * 2))
        for _ in workers:
            queue.put(None)
        for worker in workers:
            worker.join(TIMEOUT)
        assert [worker.exitcode for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    for consumer, answers in enumerate(found):
        assert sorted(body for _, body in answers) == sorted((consumer, body) for body in bodies)


def test_requests_do_not_wait_for_a_worker() -> None:
    """The event loop of an HTTP server puts them, while workers are busy and the pipe is full."""
    queue = request_queue()
    queue.cancel_join_thread()
    start = threading.active_count()
    for number in range(3):
        queue.put((number, LARGE))
    assert threading.active_count() <= start + 1  # the queue's thread
    assert [queue.get(timeout=TIMEOUT)[0] for _ in range(3)] == [0, 1, 2]
    queue.close()


def test_an_answer_is_awaited_without_a_thread() -> None:
    transport = PipeTransport(1)

    async def exchange() -> tuple[Any, list[Any], int]:
        nothing = await transport.areceive(0, timeout=0.01)
        waiting = asyncio.create_task(receive(transport, 0, 2))
        await asyncio.sleep(0)
        threads = threading.active_count()
        transport.send("first", 0)
        transport.send("second", 0)
        return nothing, await waiting, threads

    threads = threading.active_count()
    assert asyncio.run(exchange()) == (None, ["first", "second"], threads)


def test_an_http_server_that_ends_stops_waiting() -> None:
    """LitServe cancels the task; a later one reads on."""
    transport = PipeTransport(1)

    async def cancel() -> Any:
        task = asyncio.create_task(transport.areceive(0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        transport.send("later", 0)
        return await transport.areceive(0, timeout=TIMEOUT)

    assert asyncio.run(cancel()) == "later"
