"""What a request must be, checked before it reaches a worker and the requests of others."""

from __future__ import annotations

import json

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/predict"
EXPECTED = 'send {"text": ..., "profile": ...} as JSON'
DRAINED = 16  # times `max_bytes` that are read of a body, so that its sender hears the answer


def refusal(status: int, why: str) -> JSONResponse:
    """An error, as JSON."""
    return JSONResponse({"detail": why}, status)


class CheckRequest:
    """Middleware: what a worker gets is a text and a profile, and neither is too large."""

    def __init__(self, app: ASGIApp, *, max_characters: int, max_bytes: int) -> None:
        self.app, self.max_characters, self.max_bytes = app, max_characters, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", PATH):
            await self.app(scope, receive, send)
            return
        parts, size, more = [], 0, True
        while more and size <= DRAINED * self.max_bytes:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return
            size += len(message.get("body", b""))
            if size <= self.max_bytes:
                parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(parts)
        if size > self.max_bytes:
            answer = refusal(413, f"the request has more than {self.max_bytes} bytes")
            await answer(scope, receive, send)
        elif fault := self.fault(body):
            await refusal(422, fault)(scope, receive, send)
        else:
            await self.app(_as_json(scope), _again(body, receive), send)

    def fault(self, body: bytes) -> str | None:
        """What is wrong with a request."""
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return f"the request is not JSON: {EXPECTED}"
        if not isinstance(asked, dict):
            return f"the request is a {type(asked).__name__}: {EXPECTED}"
        for name in ("text", "profile"):
            value = asked.get(name)
            if not isinstance(value, str):
                found = f"is a {type(value).__name__}" if name in asked else "is missing"
                return f"{name!r} {found}: {EXPECTED}"
            if not value.strip():
                return f"{name!r} is empty: {EXPECTED}"
            if any("\ud800" <= character <= "\udfff" for character in value):
                return f"{name!r} holds half a character, a lone surrogate"
        if len(asked["text"]) > self.max_characters:
            return (
                f"'text' has {len(asked['text'])} characters, and {self.max_characters} are allowed"
            )
        return None


def _as_json(scope: Scope) -> Scope:
    """Without another content type: LitServe would read a form, which is not what was checked."""
    headers = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}


def _again(body: bytes, receive: Receive) -> Receive:
    """``receive`` from before the body was read."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
