"""A client that still sends its request gets the answer, and not a reset connection."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class UnreadBody:
    """ASGI middleware that discards what an answer has left unread of a request's body.

    A request that is too large, or that has no token, is answered before its body has arrived.
    A server that then closes the connection resets it, since bytes are unread, and the client may
    lose the answer. Here the answer is sent first, and ends when the client has sent everything
    or has disconnected; the limit on the time of a request ends a client that does neither.

    Args:
        app: the application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        more = True  # of the body

        async def read() -> Message:
            nonlocal more
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def answer(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if not (last and more):
                await send(message)
                return
            await send({**message, "more_body": True})
            while more:
                await read()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self.app(scope, read, answer)
