"""The middleware that validates requests, in front of an application that returns them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from profiles.serving.cases import INVALID, MAX_BYTES, MAX_CHARACTERS, TOO_LARGE, request

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from lightning_pelt.profiles.serving.request_validation import PATH, RequestValidation

CHUNK = 1000  # bytes of a message


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what a worker would get."""
    got = Request(scope, receive)
    await JSONResponse([(await got.body()).decode(), got.headers["content-type"]])(
        scope, receive, send
    )


def post(body: Any, content_type: str = "application/json", path: str = PATH) -> tuple[int, Any]:
    """Status and JSON of the answer; a ``body`` of bytes is sent unchanged."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    chunks = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)] or [b""]
    messages = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, start=1)
    ]
    headers = [(b"content-type", content_type.encode())]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    limits = {"max_characters": MAX_CHARACTERS, "max_bytes": MAX_BYTES}
    asyncio.run(RequestValidation(application, **limits)(scope, receive, send))
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
    assert post(body) == (413, {"detail": "the request has more than 3000 bytes"})


def test_a_valid_request_is_passed_on_as_json() -> None:
    body = json.dumps({**request("a" * MAX_CHARACTERS, "ann"), "other": [1]}).ljust(MAX_BYTES)
    form = "application/x-www-form-urlencoded"  # of curl -d
    assert post(body.encode(), form) == (200, [body, "application/json"])


def test_the_first_invalid_field_is_named() -> None:
    assert post({"text": 7})[1]["detail"].startswith("'text' is a int")
    assert post(request("a" * 101, ""))[1]["detail"].startswith("'profile' is empty")


def test_other_paths_are_not_validated() -> None:
    assert post(b"{", path="/health") == (200, ["{", "application/json"])
