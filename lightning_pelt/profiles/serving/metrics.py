"""Figures for Prometheus, of all processes of a server together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    values,
)
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # which prometheus_client reads
PREFIX = "lightning_pelt_"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DISCONNECTED = 499  # the status, by custom, of a request whose client has gone
OTHER = "other"


class Metrics:
    """Counters that each process writes to a file, so that any of them can sum them.

    Args:
        folder: folder of these files, which is empty when the server starts.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     metrics = Metrics(folder)
        ...     metrics.texts.labels("200").inc(3)
        ...     b'lightning_pelt_texts_total{status="200"} 3.0' in metrics.expose()
        True
    """

    def __init__(self, folder: str) -> None:
        os.environ[FOLDER] = self.folder = folder
        # Chosen when prometheus_client was imported, perhaps before the folder was known.
        values.ValueClass = values.MultiProcessValue()
        live = {"multiprocess_mode": "livesum"}
        self.requests = _metric(
            Counter, "requests", "Requests by path and status.", ["path", "status"]
        )
        self.seconds = _metric(
            Histogram, "request_seconds", "From a request to its answer.", ["path"], buckets=SECONDS
        )
        self.open = _metric(Gauge, "open_requests", "Requests without an answer.", **live)
        self.texts = _metric(Counter, "texts", "Texts by the status of their answers.", ["status"])
        self.batch_texts = _metric(Histogram, "batch_texts", "Texts of a batch.", buckets=ROWS)
        self.batch_seconds = _metric(
            Histogram, "batch_seconds", "Time of a batch in a worker.", buckets=SECONDS
        )
        self.queue_seconds = _metric(
            Histogram, "queue_seconds", "Time of a request in the queue.", buckets=SECONDS
        )
        self.loaded = _metric(
            Counter, "loaded_profiles", "Profiles that were read, since no cache had them."
        )
        self.cached = _metric(
            Gauge, "cached_profiles", "Profiles in memory, of all workers.", **live
        )

    def expose(self, queued: int | None = None) -> bytes:
        """All figures in the text format of Prometheus, and the length of the queue."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry, self.folder)
        if queued is not None:
            registry.register(_Queued(queued))
        return generate_latest(registry)

    @contextmanager
    def batch(self, texts: int) -> Iterator[None]:
        """Measure a batch."""
        start = time.perf_counter()
        yield
        self.batch_seconds.observe(time.perf_counter() - start)
        self.batch_texts.observe(texts)


class Measured:
    """ASGI middleware that counts and times requests.

    Args:
        app: the application behind it.
        metrics: where they are counted.
        paths: paths that are told apart, or their beginnings if they end with a slash. All others
            count as one, since clients choose them.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: Sequence[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = DISCONNECTED

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path, start = self._name(scope["path"]), time.perf_counter()
        self.metrics.open.inc()
        try:
            await self.app(scope, receive, noted)
        except Exception:
            status = 500  # which Starlette answers, in front of all middleware
            raise
        finally:
            self.metrics.open.dec()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
            self.metrics.requests.labels(path, str(status)).inc()

    def _name(self, path: str) -> str:
        if path in self.paths:
            return path
        starts = (one for one in self.paths if one.endswith("/"))
        return next((one for one in starts if path.startswith(one)), OTHER)


class _Queued:
    def __init__(self, queued: int) -> None:
        self.queued = queued

    def collect(self) -> Iterable[GaugeMetricFamily]:
        what = "Requests that no worker has taken yet."
        yield GaugeMetricFamily(f"{PREFIX}queued_requests", what, value=self.queued)


def _metric(
    kind: Callable[..., Any], name: str, what: str, labels: Sequence[str] = (), **options: Any
) -> Any:
    return kind(PREFIX + name, what, labels, registry=None, **options)
