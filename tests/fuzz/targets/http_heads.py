"""What a client sends to the server before its application sees a request."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from random import Random
from typing import Any

import uvicorn
from fuzz.mutators import TEXT, Change
from fuzz.target import Target
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from lightning_pelt.profiles.serving.bearer_token import BearerToken
from lightning_pelt.profiles.serving.request_validation import (
    PATH,
    Limits,
    RequestValidation,
    texts_of,
)
from lightning_pelt.profiles.serving.slow_clients import MAX_HEAD, TimedProtocol

TOKEN = "secret"
BODY = json.dumps({"text": "one two", "profile": "ann"}).encode()
HEADS = {
    "sized": (
        f"POST {PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    ).encode()
    + BODY,
    "chunked": (
        f"POST {PATH} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    ).encode()
    + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
}


def _line(new: bytes) -> Change:
    """Put a line behind one of the first lines."""

    def change(data: bytes, draw: Random) -> bytes:
        lines = data.split(b"\r\n")
        lines.insert(draw.randint(1, min(4, len(lines))), new)
        return b"\r\n".join(lines)

    change.__name__ = f"line {new[:30]!r}"
    return change


LINES = [
    *(b"Content-Length: 0", b"Content-Length: -1", b"Content-Length: 99999999999999999999"),
    *(b"Content-Length: 5, 6", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked"),
    *(b"Transfer-Encoding:\x0bchunked", b"Authorization: Bearer wrong", b"Authorization:"),
    *(b"Expect: 100-continue", b"Upgrade: websocket", b"Upgrade: h2c", b"Connection: upgrade"),
    *(b"Connection: close", b" folded: yes", b": none", b"no colon", b"a\x00b: c", b"a: \xff\xfe"),
    *(b"Host: b", b"X: " + b"y" * (MAX_HEAD + 1), b"X: " + b"y" * 8_000),
]
PATHS = [
    *(b"/predict/../predict", b"//predict", b"/predict?text=x", b"http://b/predict", b"*", b"/"),
    *(b"/%70redict", b"/predict%00", b"/" + b"a" * MAX_HEAD, b"/\xff", b"/profiles/../../x"),
]


def other_path(data: bytes, draw: Random) -> bytes:
    return data.replace(PATH.encode(), draw.choice(PATHS), 1)


def other_method(data: bytes, draw: Random) -> bytes:
    methods = [b"GET", b"CONNECT", b"DELETE", b"PRI", b"post", b"P\x00ST", b"M" * 1000, b""]
    return data.replace(b"POST", draw.choice(methods), 1)


def other_version(data: bytes, draw: Random) -> bytes:
    return data.replace(b"1.1", draw.choice([b"1.0", b"2.0", b"0.9", b"1.11", b"9" * 100]), 1)


def second_request(data: bytes, draw: Random) -> bytes:
    """A request behind the first, with or without the token."""
    other = data.replace(TOKEN.encode(), b"wrong") if draw.random() < 0.5 else data
    return data + other


CHANGES = [*TEXT, *map(_line, LINES), *[other_path] * 4, *[other_method] * 2, other_version] + [
    second_request
] * 2


class _Wire(asyncio.Transport):
    """A connection that keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 9), "sockname": ("127.0.0.1", 8000)})
        self.sent, self.closed = bytearray(), False

    def write(self, data: Any) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_protocol(self, protocol: Any) -> None: ...


class _Errors(logging.Handler):
    """Keeps what uvicorn logs of exceptions of an application."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


class Heads(Target):
    """Bytes of a connection: what reaches the application has the token and is a valid request."""

    name = "HTTP heads"
    errors = (ValueError,)
    seconds = 5.0

    def write(self, folder: Path) -> None:
        for name, data in HEADS.items():
            (folder / name).write_bytes(data)
        (folder / "connection").write_bytes(HEADS["sized"])

    def change(self, folder: Path, draw: Random) -> str:
        data, done = (folder / draw.choice(sorted(HEADS))).read_bytes(), []
        for _ in range(draw.choice([1, 1, 2])):
            change = draw.choice(CHANGES)
            data = change(data, draw)
            done.append(change.__name__)
        (folder / "connection").write_bytes(data)
        return " + ".join(done)

    def load(self, folder: Path) -> Any:
        data = (folder / "connection").read_bytes()
        errors = _Errors()
        logger = logging.getLogger("uvicorn.error")
        logger.addHandler(errors)
        try:
            reached, sent, closed = asyncio.run(_connection(data))
        finally:
            logger.removeHandler(errors)
        if errors.found:
            raise AssertionError(errors.found[0])
        statuses = [line for line in sent.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        unexpected = [line for line in statuses if not line[9:12].isdigit() or line[9:10] == b"5"]
        if unexpected:
            raise AssertionError(f"answered {unexpected[0]!r}")
        if reached:
            return [(tuple(token), body) for token, body in reached]
        if not statuses and not closed:
            raise ValueError("the server waits for the rest, and closes the connection later")
        raise ValueError(f"answered {statuses or 'nothing'}")

    def problem(self, folder: Path, result: Any) -> str | None:
        for tokens, body in result:
            if tokens != (f"Bearer {TOKEN}".encode(),):
                return f"a request with the tokens {tokens!r} was answered"
            request = json.loads(body)
            if not all(isinstance(text, str) and text.strip() for text in texts_of(request)):
                return f"an invalid request was accepted: {request!r:.200}"
        return None


async def _connection(data: bytes) -> tuple[list[Any], bytes, bool]:
    """Send ``data`` in two parts; what reached the application, the answers, and the end."""
    reached: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if (scope["method"], scope["path"]) == ("POST", PATH):
            tokens = [value for name, value in scope["headers"] if name == b"authorization"]
            reached.append((tokens, (await Request(scope, receive).body()).decode()))
        await JSONResponse({"path": scope["path"]})(scope, receive, send)

    checked = BearerToken(
        RequestValidation(app, limits=Limits(max_characters=1000, max_bytes=5000)), token=TOKEN
    )
    config = uvicorn.Config(checked, lifespan="off", log_config=None, log_level="error")
    config.load()
    state, wire = ServerState(), _Wire()
    protocol = TimedProtocol(
        seconds=1.0,
        config=config,
        server_state=state,
        app_state={},
        _loop=asyncio.get_running_loop(),
    )
    protocol.connection_made(wire)
    for part in (data[: len(data) // 2], data[len(data) // 2 :]):
        if part and not wire.closed:
            protocol.data_received(part)
            await asyncio.sleep(0)
    while pending := [task for task in state.tasks if not task.done()]:
        done, _ = await asyncio.wait(pending, timeout=0.05)
        if not done:  # it waits for the rest of a body
            break
    protocol.connection_lost(None)
    await asyncio.sleep(0)
    return reached, bytes(wire.sent), wire.closed
