"""The middleware that validates requests, in front of an application that returns them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from profiles.serving.cases import (
    INVALID,
    MAX_BYTES,
    MAX_CHARACTERS,
    MAX_TEXTS,
    TOO_LARGE,
    request,
    several,
)

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from lightning_pelt.profiles.serving.request_validation import (
    PATH,
    Limits,
    RequestValidation,
)

CHUNK = 1000  # bytes of a message


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what a worker would get."""
    got = Request(scope, receive)
    await JSONResponse([(await got.body()).decode(), got.headers["content-type"]])(
        scope, receive, send
    )


def post(
    body: Any, content_type: str = "application/json", path: str = PATH, *, length: bool = True
) -> tuple[int, Any]:
    """Status and JSON of the answer; a ``body`` of bytes is sent unchanged.

    Without a ``length``, the request does not state its size, like one in chunks.
    """
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    chunks = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)] or [b""]
    messages = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, start=1)
    ]
    headers = [(b"content-type", content_type.encode())]
    if length:
        headers.append((b"content-length", str(len(data)).encode()))
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    limits = Limits(max_characters=MAX_CHARACTERS, max_bytes=MAX_BYTES, max_texts=MAX_TEXTS)
    asyncio.run(RequestValidation(application, limits=limits)(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.parametrize(("body", "message"), INVALID.values(), ids=INVALID)
def test_an_invalid_request_is_answered_with_422(body: Any, message: str) -> None:
    status, answer = post(body)
    assert status == 422
    assert message in answer["detail"]
    assert list(answer) == ["detail"]


@pytest.mark.parametrize("size", TOO_LARGE)
def test_a_large_request_is_answered_with_413(size: int) -> None:
    body = json.dumps(request("a", "ann")).encode().ljust(size)
    for length, found in ((True, size), (False, "more than 3000")):
        status, answer = post(body, length=length)
        assert status == 413
        expected = f"the request has {found} bytes, and 3000 are allowed: send"
        assert answer["detail"].startswith(expected)
        assert answer["detail"].endswith("a larger --max_bytes")


def test_too_many_texts_are_answered_with_413() -> None:
    """Before the texts are read: the number is the reason even if one of them is invalid."""
    status, answer = post(several(["a"] * MAX_TEXTS + [""]))
    assert status == 413
    assert answer["detail"] == (
        "the request has 7 texts, and 6 are allowed: send fewer or shorter texts at a time, or "
        "start the server with a larger --max_texts"
    )


def test_a_valid_request_is_passed_on_as_json() -> None:
    body = json.dumps({**request("a" * MAX_CHARACTERS, "ann"), "other": [1]}).ljust(MAX_BYTES)
    form = "application/x-www-form-urlencoded"  # of curl -d
    assert post(body.encode(), form) == (200, [body, "application/json"])


def test_several_texts_are_passed_on() -> None:
    body = json.dumps(several(["a" * MAX_CHARACTERS, *"bcdef"]))
    assert post(body.encode()) == (200, [body, "application/json"])


@pytest.mark.parametrize("name", ["max_bytes", "max_texts", "max_tokens", "max_characters"])
def test_a_limit_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        Limits(**{name: 0})


def test_the_first_invalid_field_is_named() -> None:
    assert post({"text": 7})[1]["detail"].startswith("'text' is a int")
    assert post(request("a" * 101, ""))[1]["detail"].startswith("'profile' is empty")


def test_other_paths_are_not_validated() -> None:
    assert post(b"{", path="/health") == (200, ["{", "application/json"])
