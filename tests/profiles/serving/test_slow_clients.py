"""Clients that send no request, or half of one, against uvicorn on real sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from unittest.mock import MagicMock

import pytest

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from lightning_pelt.profiles.serving.slow_clients import MAX_HEAD, TimedProtocol

WHOLE = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
HALVES = {"nothing": b"", "half a head": WHOLE[:20], "half a body": WHOLE[:-2]}
LIMIT = 30  # seconds after which a connection that stays open has failed


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(body)(scope, receive, send)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a server that waits a second for a request."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(512)
        protocol = partial(TimedProtocol, seconds=1.0)
        config = uvicorn.Config(
            application, http=protocol, lifespan="off", log_level="warning", timeout_keep_alive=60
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=LIMIT)


def answer(connection: socket.socket) -> bytes:
    """What arrives up to the body, or the end of the connection."""
    got = b""
    while not got.endswith(b"body") and (more := connection.recv(4096)):
        got += more
    return got


def test_half_open_connections_are_closed_and_others_are_answered(port: int) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(port)) for _ in range(300)]
        for number, connection in enumerate(slow):
            connection.sendall([*HALVES.values()][number % len(HALVES)])
        honest = stack.enter_context(connected(port))
        honest.sendall(WHOLE)
        assert answer(honest).startswith(b"HTTP/1.1 200")
        assert [connection.recv(1) for connection in slow] == [b""] * 300


def wait(port: int) -> None:
    """Wait longer than the limit: the server closes a connection after it."""
    for _ in range(2):
        with connected(port) as clock:
            assert clock.recv(1) == b""


def test_a_client_that_does_not_read_its_answer_is_closed(port: int) -> None:
    size = 64 << 20  # more than the buffers of the system take
    with connected(port) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        connection.sendall(bytes(size))
        wait(port)
        read = 0
        with suppress(ConnectionResetError):
            while more := connection.recv(1 << 20):
                read += len(more)
        assert read < size


@pytest.mark.parametrize("before", [b"", WHOLE], ids=["first", "later"])
def test_a_head_without_end_is_refused(port: int, before: bytes) -> None:
    with connected(port) as connection:
        connection.sendall(before)
        if before:
            assert answer(connection).endswith(b"body")
        # One byte too many, so that the server has read all of it when it closes.
        connection.sendall(b"GET / HTTP/1.1\r\nX: ".ljust(MAX_HEAD + 1, b"a"))
        assert connection.recv(4096).startswith(b"HTTP/1.1 431 ")
        assert connection.recv(1) == b""


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_a_later_request_of_a_connection_has_the_same_limit(port: int, half: bytes) -> None:
    with connected(port) as connection:
        for _ in range(2):
            connection.sendall(WHOLE)
            assert answer(connection).endswith(b"body")
        if half:  # without a byte it is an idle connection, which uvicorn closes
            connection.sendall(half)
            assert connection.recv(1) == b""


def test_a_body_in_one_piece_is_no_head() -> None:
    """The piece is larger than a head may be; sockets would deliver it in several."""
    size = 3 * MAX_HEAD
    transport = MagicMock(spec=asyncio.Transport)

    async def receive() -> None:
        config = uvicorn.Config(application, lifespan="off")
        config.load()
        protocol = TimedProtocol(
            seconds=1.0, config=config, server_state=ServerState(), app_state={}
        )
        protocol.connection_made(transport)
        protocol.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        protocol.data_received(bytes(size))
        await asyncio.gather(*protocol.tasks)
        assert transport.write.call_args_list[0].args[0].startswith(b"HTTP/1.1 200")
        transport.close.assert_not_called()
        protocol.connection_lost(None)

    asyncio.run(receive())
