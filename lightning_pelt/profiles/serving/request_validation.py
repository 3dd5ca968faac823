"""Validation of requests before they reach a worker and the requests of other users."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/predict"
EXPECTED = 'send {"text": ..., "profile": ...} as JSON'
READ_FACTOR = 16  # a body of up to 16 * max_bytes is read, so that its sender gets the answer


def error_response(status: int, message: str) -> JSONResponse:
    """An error as JSON."""
    return JSONResponse({"detail": message}, status)


def _check_string(value: str) -> str:
    if not value.strip():
        raise PydanticCustomError("empty", "is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        message = "contains a lone surrogate, which is not a character"
        raise PydanticCustomError("surrogate", message) from error
    return value


Filled = Annotated[str, AfterValidator(_check_string)]


class PredictionRequest(BaseModel):
    """The body of ``POST /predict``; other fields are ignored.

    Attributes:
        text: the text to predict for.
        profile: the id of a profile in the store.

    Example:
        >>> limits = {"max_characters": 100}
        >>> PredictionRequest.model_validate({"text": "a b", "profile": "ann"}, context=limits)
        PredictionRequest(text='a b', profile='ann')
    """

    model_config = ConfigDict(strict=True)

    text: Filled
    profile: Filled

    @model_validator(mode="after")
    def _check_length(self, info: ValidationInfo) -> PredictionRequest:
        assert info.context is not None
        allowed = info.context["max_characters"]
        if len(self.text) > allowed:
            message = "'text' has {found} characters, and {allowed} are allowed"
            sizes = {"found": len(self.text), "allowed": allowed}
            raise PydanticCustomError("too_long", message, sizes)
        return self


def describe(error: ErrorDetails) -> str:
    """An error of a ``ValidationError`` as a message with the field, its value and the remedy."""
    name = repr(error["loc"][0]) if error["loc"] else "the request"
    match error["type"]:
        case "too_long":
            return error["msg"]
        case "surrogate":
            return f"{name} {error['msg']}"
        case "empty":
            found = error["msg"]
        case "missing":
            found = "is missing"
        case _:
            found = f"is a {type(error['input']).__name__}"
    return f"{name} {found}: {EXPECTED}"


class RequestValidation:
    """ASGI middleware that answers invalid or too large requests with an error.

    Args:
        app: the application behind it.
        max_characters: of a text.
        max_bytes: of a request.
    """

    def __init__(self, app: ASGIApp, *, max_characters: int, max_bytes: int) -> None:
        self.app, self.max_characters, self.max_bytes = app, max_characters, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", PATH):
            await self.app(scope, receive, send)
            return
        body = bytearray()
        size, more = 0, True
        while more and size <= READ_FACTOR * self.max_bytes:
            message = await receive()
            if message["type"] != "http.request":  # the client has disconnected
                return
            size += len(message.get("body", b""))
            if size <= self.max_bytes:
                body += message.get("body", b"")
            more = message.get("more_body", False)
        if size > self.max_bytes:
            answer = error_response(413, f"the request has more than {self.max_bytes} bytes")
            await answer(scope, receive, send)
        elif error := self.error(bytes(body)):
            await error_response(422, error)(scope, receive, send)
        else:
            await self.app(_as_json(scope), _replay(bytes(body), receive), send)

    def error(self, body: bytes) -> str | None:
        """Why a body is not a valid request; None if it is one."""
        try:
            data: Any = json.loads(body)
        except (ValueError, RecursionError):
            return f"the request is not JSON: {EXPECTED}"
        try:
            limits = {"max_characters": self.max_characters}
            PredictionRequest.model_validate(data, context=limits)
        except ValidationError as error:
            return describe(error.errors()[0])
        return None


def _as_json(scope: Scope) -> Scope:
    """``scope`` with the content type of JSON; with others, LitServe would parse a form."""
    headers = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that returns the body, which has been read, once more."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
