"""Connections of clients that do not send a request in time are closed."""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol


class TimedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol with a limit on the time in which a client sends a request.

    It counts from the start of the connection, or from the first byte of a later request, to the
    last byte of the body. uvicorn itself closes connections that are idle between two requests, but
    waits for a request that is never completed forever.

    Args:
        seconds: the limit.
        **options: of uvicorn's protocol.
    """

    def __init__(self, *, seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self._seconds = seconds
        self._timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            self._start()
        super().data_received(data)
        cycle = self.cycle  # of the last request whose head is complete, answered or not
        if cycle is not None and not (cycle.more_body or cycle.response_complete):
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        self._timer = self.loop.call_later(self._seconds, self._close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        self.transport.close()
