"""Validation of requests before they reach a worker and the requests of other users."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/predict"
EXPECTED = 'send {"text": ..., "profile": ...} or {"texts": [...], "profile": ...} as JSON'


@dataclass(frozen=True)
class Limits:
    """The largest request that is answered.

    Args:
        max_bytes: of a body.
        max_texts: of a request.
        max_tokens: of all texts of a request, after each is cut to ``max_length``.
        max_characters: of a text.

    Raises:
        ValueError: a limit is below 1.

    Example:
        >>> Limits(max_texts=0)
        Traceback (most recent call last):
        ValueError: max_texts is 0, expected at least 1
    """

    max_bytes: int = 100_000
    max_texts: int = 64
    max_tokens: int = 16_384
    max_characters: int = 10_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")


def too_large(what: str, found: object, allowed: int, *, remedy: str, option: str) -> str:
    """A message with the size, the limit, and what the client and the operator can do.

    Example:
        >>> too_large("texts", 9, 8, remedy="send fewer", option="max_texts")[:54]
        'the request has 9 texts, and 8 are allowed: send fewer'
    """
    return (
        f"the request has {found} {what}, and {allowed} are allowed: {remedy}, or start the server "
        f"with a larger --{option}"
    )


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


_FILLED: dict[str, Any] = {"minLength": 1}  # for the document; Python's check is more exact
Filled = Annotated[str, AfterValidator(_check_string), Field(json_schema_extra=_FILLED)]


class _Texts(BaseModel):
    """Checks the lengths of texts after all fields are known to be filled."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="after")
    def _check_lengths(self, info: ValidationInfo) -> _Texts:
        assert info.context is not None
        allowed = info.context["max_characters"]
        for row, text in enumerate(texts_of(dict(self))):
            if len(text) > allowed:
                name = f"'texts'[{row}]" if "texts" in dict(self) else "'text'"
                message = "{name} has {found} characters, and {allowed} are allowed"
                sizes = {"name": name, "found": len(text), "allowed": allowed}
                raise PydanticCustomError("too_long", message, sizes)
        return self


class PredictionRequest(_Texts):
    """The body of ``POST /predict`` with one text; other fields are ignored.

    Attributes:
        text: the text to predict for.
        profile: the id of a profile in the store.

    Example:
        >>> limits = {"max_characters": 100}
        >>> PredictionRequest.model_validate({"text": "a b", "profile": "ann"}, context=limits)
        PredictionRequest(text='a b', profile='ann')
    """

    text: Filled = Field(description="The text to predict for.")
    profile: Filled = Field(description="The id of a profile in the store.")


class TextsRequest(_Texts):
    """The body of ``POST /predict`` with several texts of a profile; other fields are ignored.

    Attributes:
        texts: the texts to predict for.
        profile: the id of a profile in the store.

    Example:
        >>> limits = {"max_characters": 100}
        >>> TextsRequest.model_validate({"texts": ["a b", "c"], "profile": "ann"}, context=limits)
        TextsRequest(texts=['a b', 'c'], profile='ann')
    """

    texts: list[Filled] = Field(min_length=1, description="The texts to predict for.")
    profile: Filled = Field(description="The id of a profile in the store.")


def texts_of(request: Mapping[str, Any]) -> list[str]:
    """The texts of a valid request."""
    return request["texts"] if "texts" in request else [request["text"]]


def describe(error: ErrorDetails) -> str:
    """An error of a ``ValidationError`` as a message with the field, its value and the remedy."""
    path = error["loc"]
    name = repr(path[0]) + "".join(f"[{n}]" for n in path[1:]) if path else "the request"
    match error["type"]:
        case "too_long":
            remedy = "shorten it, or start the server with a larger --max_characters"
            return f"{error['msg']}: {remedy}"
        case "surrogate":
            return f"{name} {error['msg']}"
        case "empty":
            found = error["msg"]
        case "too_short":
            found = "is empty"
        case "missing":
            found = "is missing"
        case _:
            found = f"is a {type(error['input']).__name__}"
    return f"{name} {found}: {EXPECTED}"


class RequestValidation:
    """ASGI middleware that answers invalid or too large requests with an error.

    Args:
        app: the application behind it.
        limits: of a request; a worker checks the number of tokens.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", PATH):
            await self.app(scope, receive, send)
            return
        body, allowed = bytearray(), self.limits.max_bytes
        more = True
        while more and len(body) <= allowed:
            message = await receive()
            if message["type"] != "http.request":  # the client has disconnected
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > allowed:
            stated = dict(scope["headers"]).get(b"content-length", b"").decode()
            found = stated or f"more than {allowed}"
            answer: JSONResponse | None = self._too_large("bytes", found, "max_bytes")
        else:
            answer = self.refusal(bytes(body))
        if answer is not None:
            await answer(scope, receive, send)
        else:
            await self.app(_as_json(scope), _replay(bytes(body), receive), send)

    def refusal(self, body: bytes) -> JSONResponse | None:
        """The answer to a body that is not a valid request; None if it is one."""
        try:
            data: Any = json.loads(body)
        except (ValueError, RecursionError):
            return error_response(422, f"the request is not JSON: {EXPECTED}")
        several = isinstance(data, dict) and "texts" in data
        if several and "text" in data:
            return error_response(422, f"the request has 'text' and 'texts': {EXPECTED}")
        found = len(data["texts"]) if several and isinstance(data["texts"], list) else 0
        if found > self.limits.max_texts:
            return self._too_large("texts", found, "max_texts")
        model: type[_Texts] = TextsRequest if several else PredictionRequest
        try:
            model.model_validate(data, context={"max_characters": self.limits.max_characters})
        except ValidationError as error:
            return error_response(422, describe(error.errors()[0]))
        return None

    def _too_large(self, what: str, found: object, option: str) -> JSONResponse:
        remedy = "send fewer or shorter texts at a time"
        allowed = getattr(self.limits, option)
        return error_response(413, too_large(what, found, allowed, remedy=remedy, option=option))


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
