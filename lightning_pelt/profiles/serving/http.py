"""``POST /predict`` with LitServe: requests of different users share a forward."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lightning_pelt.profiles.serving.loading import load_model, open_store
from lightning_pelt.profiles.serving.server import ProfileServer
from lightning_pelt.profiles.store import DamagedProfile, UnknownProfile

try:
    from litserve import LitAPI
    from starlette.responses import JSONResponse

    from lightning_pelt.profiles.serving._litserve import (
        BlockingBatchLoop,
        SignalServer,
        Stopped,
        WorkerLost,
    )
    from lightning_pelt.profiles.serving.bearer_token import BearerToken, read_token
    from lightning_pelt.profiles.serving.openapi import document
    from lightning_pelt.profiles.serving.request_validation import (
        PATH,
        RequestValidation,
        error_response,
    )
    from lightning_pelt.profiles.serving.slow_clients import TimedProtocol
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "serving over HTTP needs LitServe: pip install 'lightning-pelt[serve]'"
    ) from error

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SIGNALS = (signal.SIGTERM, signal.SIGINT)

_logger = logging.getLogger(__name__)


def serve(
    checkpoint: str | Path,
    store: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    max_batch_size: int = 64,
    batch_timeout: float = 0.005,
    slots: int = 1024,
    max_length: int = 128,
    max_characters: int = 10_000,
    max_bytes: int = 100_000,
    request_seconds: float = 10.0,
    token_file: str | None = None,
    accelerator: str = "auto",
) -> None:
    """Answer ``POST /predict`` and ``GET /health`` until SIGTERM or SIGINT.

    ``/docs`` shows the requests and answers, and ``/openapi.json`` describes them for programs.

    A request is ``{"text": ..., "profile": ...}``. The answer is the prediction of the task:
    ``{"label": ..., "probabilities": ...}``. Errors are ``{"detail": ...}``, with the status

    - 401 without the token of ``token_file``,
    - 404 for an unknown profile,
    - 413 for a body, and 422 for a text, that is too large,
    - 422 for an invalid request, a text without tokens, a profile of another plan, or a prediction
      that is not finite,
    - 500 for a profile with a damaged row, or an unexpected error, which is logged,
    - 503 while the store cannot be read.

    An error does not affect other requests of the batch. Texts of more than ``max_length`` tokens
    are cut, as in training. After a signal, pending requests are answered.

    Args:
        checkpoint: checkpoint of a fit with X-PEFT.
        store: store of its profiles, see :class:`ProfileStore`. Profiles can be put while the
            server runs.
        host: 127.0.0.1 to accept requests from this machine only; 0.0.0.0 or :: for all.
        port: 1024 to 65535.
        workers: processes with a model, per device.
        max_batch_size: maximum rows of one forward.
        batch_timeout: seconds that a batch waits for more requests.
        slots: adapters that each worker caches, see :class:`ProfileServer`.
        max_length: maximum tokens of a text; longer texts are cut, also to the number of positions
            of the model.
        max_characters: maximum characters of a text; longer texts are refused.
        max_bytes: maximum bytes of a request.
        request_seconds: in which a client sends a request; slower connections are closed.
        token_file: file with a secret that clients send as ``Authorization: Bearer``. By default
            everybody who reaches the port is answered.
        accelerator: cpu, cuda, mps, or auto.

    Raises:
        ValueError: checkpoint or store does not exist, is damaged, or does not match the other, or
            a number is out of range.
        OSError: the port is in use.
        RuntimeError: a worker died, which ends the server.
    """
    api = ProfileAPI(
        str(checkpoint),
        str(store),
        workers=workers,
        slots=slots,
        max_length=max_length,
        max_batch_size=max_batch_size,
        batch_timeout=batch_timeout,
    )
    limits = {"max_characters": max_characters, "max_bytes": max_bytes}
    middlewares: list[Any] = [(RequestValidation, limits)]
    if token_file is not None:
        middlewares.append((BearerToken, {"token": read_token(token_file)}))  # before the other
    elif host not in LOOPBACK:
        _logger.warning("everybody who reaches %s:%s is answered: set token_file", host, port)
    server = SignalServer(
        api,
        f"http://{host}:{port}{PATH}",
        accelerator=accelerator,
        workers_per_device=workers,
        middlewares=middlewares,
    )
    described = document(secured=token_file is not None)
    server.app.openapi = lambda: described
    before = {number: signal.signal(number, server.stop) for number in SIGNALS}
    try:
        _run(server, api, host, port, seconds=request_seconds)
    finally:
        server.end()
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(server: SignalServer, api: ProfileAPI, host: str, port: int, *, seconds: float) -> None:
    """Run the server until a signal; see :func:`serve` for the errors."""
    options: dict[str, Any] = {"http": partial(TimedProtocol, seconds=seconds)}
    try:
        server.run(host, port, log_level="warning", generate_client_file=False, **options)
    except Stopped:
        pass
    except WorkerLost:
        reason = "it was killed" if api.setup_errors.empty() else api.setup_errors.get()
        raise ValueError(f"a worker could not start: {reason}") from None
    except (EOFError, ConnectionError) as error:  # from the process with LitServe's queues
        raise RuntimeError("a worker died while serving: see its output above") from error
    except SystemExit:  # from uvicorn, which has logged the reason
        raise OSError(f"cannot listen on {host}:{port}: choose another port") from None


class ProfileAPI(LitAPI):
    """A :class:`ProfileServer` in a worker process of LitServe; see :func:`serve`."""

    def __init__(
        self,
        checkpoint: str,
        store: str,
        *,
        workers: int,
        slots: int,
        max_length: int,
        max_batch_size: int,
        batch_timeout: float,
    ) -> None:
        super().__init__(max_batch_size, batch_timeout, PATH, loop=BlockingBatchLoop())
        self.checkpoint, self.url, self.workers = checkpoint, store, workers
        self.options = {"slots": slots, "max_length": max_length, "batch_size": max_batch_size}
        self.setup_errors = multiprocessing.get_context("spawn").SimpleQueue()

    def setup(self, device: str) -> None:
        """Load model and store. LitServe calls this once in the worker."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
        torch.set_num_threads(max(1, torch.get_num_threads() // self.workers))
        try:
            self.store = open_store(self.url)
            model = load_model(self.checkpoint, device)
            self.server = ProfileServer(model, self.store, **self.options)
        except Exception as error:
            self.setup_errors.put(str(error))
            if isinstance(error, OSError | ValueError):
                logging.disable()  # the parent reports the error without a traceback
            raise
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self.store.close()
        raise SystemExit(0)

    def predict(self, rows: list[dict[str, str]], **_: Any) -> list[JSONResponse]:
        """The answer to each row. LitServe would answer all rows with an error that is raised."""
        texts, profiles = [row["text"] for row in rows], [row["profile"] for row in rows]
        found = self.server.answer(texts, profiles)
        return [_response(one, id) for one, id in zip(found, profiles, strict=True)]


def _response(found: dict[str, Any] | Exception, id: str) -> JSONResponse:
    """A prediction, or the error of its row with the status of its kind."""
    match found:
        case dict():
            return JSONResponse(found)
        case UnknownProfile():
            return error_response(404, f"there is no profile {id!r}")
        case DamagedProfile():
            return error_response(500, f"the profile {id!r} is damaged: {found.reasons[id]}")
        case ValueError():
            return error_response(422, str(found))
        case OSError():
            _logger.error("the store cannot be read: %s", found)
            return error_response(503, "the store of the profiles cannot be read: try again later")
    _logger.error("a prediction for the profile %r failed", id, exc_info=found)
    return error_response(500, f"the prediction failed with {type(found).__name__}")
