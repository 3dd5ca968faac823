"""Connections of clients that send or read too slowly, or send too long a head, are closed."""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

MAX_HEAD = 65_536  # bytes of the request line and the headers
TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n"
)


class TimedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol with a limit on the time in which a client sends a request.

    It counts from the start of the connection, or from the first byte of a later request, to the
    last byte of the body. A client that reads nothing of its answers has the same time. A head of
    more than 64 KiB is refused. uvicorn itself closes connections that are idle between two
    requests, but waits forever for a request that is never completed, or an answer that is never
    read.

    Args:
        seconds: the limit.
        **options: of uvicorn's protocol.
    """

    def __init__(self, *, seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self._seconds = seconds
        self._timer: TimerHandle | None = None
        self._reader: TimerHandle | None = None
        self._head = 0  # bytes since the last complete head or body

    def connection_made(self, transport: Transport) -> None:
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            self._start()
        before, in_body = self.cycle, self._in_body()
        super().data_received(data)
        cycle = self.cycle  # of the last request whose head is complete, answered or not
        in_body = in_body or self._in_body()  # also if the body ends in ``data``
        self._head = 0 if in_body or cycle is not before else self._head + len(data)
        if self._head > MAX_HEAD:
            self._refuse_head()
        elif cycle is not None and not (cycle.more_body or cycle.response_complete):
            self._stop()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self.loop.call_later(self._seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader is not None:
            self._reader.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        if self._reader is not None:
            self._reader.cancel()
        super().connection_lost(exc)

    def _in_body(self) -> bool:
        cycle = self.cycle
        return cycle is not None and cycle.more_body and not cycle.response_complete

    def _refuse_head(self) -> None:
        pending = self.cycle is not None and not self.cycle.response_complete
        if not pending and not self.transport.is_closing():  # else the answer is that of another
            self.transport.write(TOO_LONG)
        self.transport.close()

    def _start(self) -> None:
        self._timer = self.loop.call_later(self._seconds, self._close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._timer = None
        self.transport.close()
