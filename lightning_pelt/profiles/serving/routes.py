"""What a server answers beside predictions."""

from __future__ import annotations

import logging
from functools import cached_property

from starlette.responses import Response

from lightning_pelt.profiles.serving._litserve import SignalServer
from lightning_pelt.profiles.serving._sweeps import Sweeps
from lightning_pelt.profiles.serving.loading import open_store
from lightning_pelt.profiles.serving.request_validation import error_response
from lightning_pelt.profiles.store import ProfileStore, UnknownProfile

PROFILES = "/profiles/"
SWEEP_SECONDS = 10.0  # for all workers to drop a deleted profile, before the answer says otherwise

_logger = logging.getLogger(__name__)


class Operations:
    """The routes for the operators of a server.

    FastAPI calls them in threads. The store is opened in the process that answers, when it is first
    needed: connections do not outlive a fork.

    Args:
        url: of the store.
        sweeps: of the workers.
        allow_delete: whether profiles can be deleted.
    """

    def __init__(self, url: str, *, sweeps: Sweeps, allow_delete: bool) -> None:
        self.url, self.sweeps, self.allow_delete = url, sweeps, allow_delete

    def add(self, server: SignalServer) -> None:
        """Add the routes to a server."""
        path = PROFILES + "{id:path}"
        server.app.add_api_route(path, self.delete, methods=["DELETE"], response_model=None)

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
