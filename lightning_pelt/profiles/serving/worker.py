"""The process of a server that has the model; requests of different users share a forward."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from litserve import LitAPI
from starlette.responses import JSONResponse

from lightning_pelt.profiles.serving._litserve import BlockingBatchLoop
from lightning_pelt.profiles.serving._processes import end_with_parent
from lightning_pelt.profiles.serving._sweeps import Sweeps
from lightning_pelt.profiles.serving.loading import Dtype, load_model, open_store
from lightning_pelt.profiles.serving.metrics import Metrics
from lightning_pelt.profiles.serving.request_validation import (
    PATH,
    Limits,
    error_response,
    texts_of,
    too_large,
)
from lightning_pelt.profiles.serving.server import ProfileServer
from lightning_pelt.profiles.store import DamagedProfile, UnknownProfile

Found = dict[str, Any] | Exception

_logger = logging.getLogger(__name__)


class ProfileAPI(LitAPI):
    """A :class:`ProfileServer` in a worker process of LitServe; see :func:`serve`.

    Attributes:
        sweeps: when workers drop deleted profiles; without it, they stay until they are evicted.
        setup_errors: why workers could not start.
        ending: whether SIGTERM ends a worker. Before that, requests may be pending: a service
            manager sends the signal to all processes, and the parent ends workers last.
    """

    sweeps: Sweeps | None = None

    def __init__(
        self,
        checkpoint: str,
        store: str,
        *,
        metrics_folder: str,
        workers: int,
        slots: int,
        max_length: int,
        max_batch_size: int,
        batch_timeout: float,
        max_tokens: int = Limits.max_tokens,
        dtype: Dtype | None = None,
    ) -> None:
        super().__init__(max_batch_size, batch_timeout, PATH, loop=BlockingBatchLoop())
        self.checkpoint, self.url, self.workers = checkpoint, store, workers
        self.metrics_folder, self.max_tokens, self.dtype = metrics_folder, max_tokens, dtype
        self.options = {"slots": slots, "max_length": max_length, "batch_size": max_batch_size}
        context = multiprocessing.get_context("spawn")  # as LitServe starts workers
        self.setup_errors = context.SimpleQueue()
        self.ending = context.RawValue("b", False)

    @cached_property
    def metrics(self) -> Metrics:
        """The figures of this process, which does not get them from the process that starts it."""
        return Metrics(self.metrics_folder)

    def setup(self, device: str) -> None:
        """Load model and store. LitServe calls this once in the worker."""
        end_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
        torch.set_num_threads(max(1, torch.get_num_threads() // self.workers))
        try:
            self.store = open_store(self.url)
            model = load_model(self.checkpoint, device, dtype=self.dtype)
            self.server = ProfileServer(model, self.store, **self.options)
        except Exception as error:
            self.setup_errors.put(str(error))
            if isinstance(error, OSError | ValueError):
                logging.disable()  # the parent reports the error without a traceback
            raise
        signal.signal(signal.SIGTERM, self._stop)
        if self.sweeps is not None:
            number = int(os.environ["LITSERVE_WORKER_ID"])
            self._stop_sweeps = self.sweeps.start(number, self._forget_deleted)

    def _forget_deleted(self) -> None:
        self.server.forget_deleted()
        self.metrics.cached.set(len(self.server.cache))

    def _stop(self, *_: object) -> None:
        if not self.ending.value:
            return
        if self.sweeps is not None:
            self._stop_sweeps()
        self.store.close()
        raise SystemExit(0)

    def count_rows(self, request: Mapping[str, Any]) -> int:
        """The number of rows that a request adds to a batch."""
        return len(texts_of(request))

    def predict(self, requests: list[dict[str, Any]], **_: Any) -> list[JSONResponse]:
        """The answer to each request; all their texts share forwards.

        LitServe would answer all requests with an error that is raised.
        """
        refused = [self._refusal(texts_of(request)) for request in requests]
        good = [row for row, no in zip(requests, refused, strict=True) if no is None]
        texts = [text for row in good for text in texts_of(row)]
        profiles = [row["profile"] for row in good for _ in texts_of(row)]
        loaded = self.server.cache.loaded
        with self.metrics.batch(len(texts)):
            found = iter(self.server.answer(texts, profiles))
        self.metrics.loaded.inc(self.server.cache.loaded - loaded)
        self.metrics.cached.set(len(self.server.cache))
        answers = [
            no or _response(row, [next(found) for _ in texts_of(row)])
            for row, no in zip(requests, refused, strict=True)
        ]
        self._count(requests, answers)
        return answers

    def _count(self, requests: list[dict[str, Any]], answers: list[JSONResponse]) -> None:
        statuses = Counter[str]()
        for request, answer in zip(requests, answers, strict=True):
            statuses[str(answer.status_code)] += len(texts_of(request))
        for status, count in statuses.items():
            self.metrics.texts.labels(status).inc(count)

    def _refusal(self, texts: Sequence[str]) -> JSONResponse | None:
        """The answer to a request with too many tokens; None if it has not."""
        if len(texts) * self.server.max_length <= self.max_tokens:
            return None
        try:
            found = self.server.count_tokens(texts)
        except ValueError:  # the answer to the row names it
            return None
        if found <= self.max_tokens:
            return None
        remedy = "send fewer or shorter texts at a time"
        message = too_large("tokens", found, self.max_tokens, remedy=remedy, option="max_tokens")
        return error_response(413, message)


def _response(request: Mapping[str, Any], found: Sequence[Found]) -> JSONResponse:
    """The predictions of a request, or the error of its first row that has one."""
    several = "texts" in request
    for row, one in enumerate(found):
        if isinstance(one, Exception):
            status, message = _error(one, request["profile"])
            # An error of the profile is that of all rows.
            named = several and not isinstance(one, UnknownProfile | DamagedProfile | OSError)
            return error_response(status, f"'texts'[{row}]: {message}" if named else message)
    return JSONResponse({"predictions": [*found]} if several else found[0])


def _error(error: Exception, id: str) -> tuple[int, str]:
    """The status and the message of the error of a row."""
    match error:
        case UnknownProfile():
            return 404, f"there is no profile {id!r}"
        case DamagedProfile():
            return 500, f"the profile {id!r} is damaged: {error.reasons[id]}"
        case ValueError():
            return 422, str(error)
        case OSError():
            _logger.error("the store cannot be read: %s", error)
            return 503, "the store of the profiles cannot be read: try again later"
    _logger.error("a prediction for the profile %r failed", id, exc_info=error)
    return 500, f"the prediction failed with {type(error).__name__}"
