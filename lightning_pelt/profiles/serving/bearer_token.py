"""A secret that clients have to send."""

from __future__ import annotations

import hmac
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from lightning_pelt.profiles.serving.request_validation import error_response

OPEN = ("/health", "/ready")  # paths that need no token, for the programs that watch a server


class BearerToken:
    """ASGI middleware that answers 401 to requests without ``Authorization: Bearer TOKEN``.

    Args:
        app: the application behind it.
        token: the secret.
    """

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self.app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or self._is_sent(scope):
            await self.app(scope, receive, send)
            return
        answer = error_response(401, "send the token of this server: Authorization: Bearer TOKEN")
        answer.headers["www-authenticate"] = "Bearer"
        await answer(scope, receive, send)

    def _is_sent(self, scope: Scope) -> bool:
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        # In a time that does not tell how much of it is right.
        return len(sent) == 1 and hmac.compare_digest(sent[0], self._expected)


def read_token(path: str | Path) -> str:
    """The token in a file, which keeps it out of the list of processes.

    Raises:
        ValueError: the file is empty, or holds more than one word of ASCII.
        OSError: it cannot be read.
    """
    text = Path(path).read_text(encoding="utf-8").strip()
    if not text or not text.isascii() or len(text.split()) != 1:
        raise ValueError(f"{path} holds no token: write one word of ASCII characters into it")
    return text
