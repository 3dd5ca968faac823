"""What a server answers beside predictions."""

from __future__ import annotations

import logging
import threading
import time
from functools import cached_property

from starlette.responses import JSONResponse, Response

from lightning_pelt.profiles.serving._litserve import SignalServer
from lightning_pelt.profiles.serving._sweeps import Sweeps
from lightning_pelt.profiles.serving.loading import check_store_exists, open_store
from lightning_pelt.profiles.serving.metrics import Metrics
from lightning_pelt.profiles.serving.request_validation import error_response
from lightning_pelt.profiles.store import ProfileStore, UnknownProfile

HEALTH = "/health"  # LitServe's own
READY = "/ready"
METRICS = "/metrics"
PROFILES = "/profiles/"
FRESH = 1.0  # seconds for which the result of a check is answered again
TEXT = "text/plain; version=0.0.4; charset=utf-8"
SWEEP_SECONDS = 10.0  # for all workers to drop a deleted profile, before the answer says otherwise

_logger = logging.getLogger(__name__)


class Operations:
    """The routes for the operators of a server.

    FastAPI calls them in threads. The store is opened in the process that answers, when it is first
    needed: connections do not outlive a fork.

    Args:
        server: the server with the workers.
        url: of the store.
        metrics: figures of all processes.
        sweeps: of the workers.
        allow_delete: whether profiles can be deleted.
    """

    def __init__(
        self,
        server: SignalServer,
        url: str,
        *,
        metrics: Metrics,
        sweeps: Sweeps,
        allow_delete: bool,
    ) -> None:
        self.server, self.url, self.metrics = server, url, metrics
        self.sweeps, self.allow_delete = sweeps, allow_delete
        self._lock = threading.Lock()
        self._checked, self._problem = -FRESH, ""

    def add(self) -> None:
        """Add the routes to the application of the server."""
        add = self.server.app.add_api_route
        add(READY, self.ready, methods=["GET"], response_model=None)
        add(METRICS, self.figures, methods=["GET"], response_model=None)
        add(PROFILES + "{id:path}", self.delete, methods=["DELETE"], response_model=None)

    def ready(self) -> Response:
        """200 if requests can be answered: models are loaded, and the store can be read."""
        with self._lock:
            if time.monotonic() - self._checked > FRESH:
                self._problem = self._check()
                self._checked = time.monotonic()
            problem = self._problem
        return error_response(503, problem) if problem else JSONResponse({"status": "ready"})

    def figures(self) -> Response:
        """All figures, in the text format of Prometheus."""
        return Response(self.metrics.expose(self.server.queued()), media_type=TEXT)

    def delete(self, id: str) -> Response:
        """204 after a profile and all its versions have left the store and all workers."""
        if not self.allow_delete:
            return error_response(
                403,
                "this server deletes no profiles: start it with --allow_delete=true, or run "
                "lightning-pelt profiles delete",
            )
        try:
            self._store.delete(id)
        except UnknownProfile:
            return error_response(404, f"there is no profile {id!r}")
        except PermissionError:
            return error_response(
                403, "the server may only read the store: run lightning-pelt profiles delete"
            )
        except (OSError, ValueError) as error:
            _logger.error("a profile cannot be deleted: %s", error)
            return error_response(503, "the store of the profiles cannot be written: try again")
        if not self.sweeps.wait(SWEEP_SECONDS):
            return error_response(
                202,
                f"the profile {id!r} is deleted; a worker has not overwritten its memory of it yet "
                "and does so after its current batch",
            )
        return Response(status_code=204)

    @cached_property
    def _store(self) -> ProfileStore:
        return open_store(self.url)

    def _check(self) -> str:
        """Why the server is not ready; an empty text if it is."""
        if not self.server.is_loaded():
            return "the model is not loaded"
        try:
            check_store_exists(self.url)
            self._store.latest(["ready"])
        except (OSError, ValueError) as error:
            _logger.error("the server is not ready: %s", error)
            return "the store of the profiles cannot be read"
        return ""
