"""Requests that are answered before they have arrived, against uvicorn on real sockets."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from functools import partial

import pytest

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from lightning_pelt.profiles.serving.slow_clients import TimedProtocol
from lightning_pelt.profiles.serving.unread_body import UnreadBody

SIZE = 20_000_000  # bytes, more than the buffers of both sockets hold
HEAD = f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n".encode()


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without reading, or after a first message."""
    if scope["path"] == "/first":
        await receive()
    await PlainTextResponse("no", 413)(scope, receive, send)


@pytest.fixture(scope="module", params=["httptools", "h11"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        protocol = partial(TimedProtocol, seconds=30.0) if request.param == "httptools" else "h11"
        config = uvicorn.Config(
            UnreadBody(refuse), http=protocol, lifespan="off", log_level="warning"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("path", ["/", "/first"])
@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}], ids=["kept", "closed"])
def test_a_client_that_sends_everything_first_gets_the_answer(
    port: int, path: str, headers: dict[str, str]
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(1 if headers else 3):  # a connection that is kept serves the next request
        connection.request("POST", path, b" " * SIZE, headers)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (413, b"no")
    connection.close()


def test_the_answer_does_not_wait_for_the_body(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(HEAD)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_request_without_a_body_is_answered(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/")
    assert connection.getresponse().status == 413
    connection.close()
