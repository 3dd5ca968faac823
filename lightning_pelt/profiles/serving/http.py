"""``POST /predict`` with LitServe: requests of different users share a forward."""

from __future__ import annotations

import logging
import signal
from functools import partial
from pathlib import Path
from typing import Any

try:
    from lightning_pelt.profiles.serving._litserve import SignalServer, Stopped, WorkerLost
    from lightning_pelt.profiles.serving._sweeps import Sweeps
    from lightning_pelt.profiles.serving.bearer_token import BearerToken, read_token
    from lightning_pelt.profiles.serving.openapi import document
    from lightning_pelt.profiles.serving.request_validation import (
        PATH,
        Limits,
        RequestValidation,
    )
    from lightning_pelt.profiles.serving.routes import Operations
    from lightning_pelt.profiles.serving.slow_clients import TimedProtocol
    from lightning_pelt.profiles.serving.worker import ProfileAPI
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
    max_texts: int = 64,
    max_tokens: int = 16_384,
    max_characters: int = 10_000,
    max_bytes: int = 100_000,
    request_seconds: float = 10.0,
    token_file: str | None = None,
    allow_delete: bool = False,
    accelerator: str = "auto",
) -> None:
    """Answer ``POST /predict`` and ``GET /health`` until SIGTERM or SIGINT.

    ``/docs`` shows the requests and answers, and ``/openapi.json`` describes them for programs.

    A request is ``{"text": ..., "profile": ...}``. The answer is the prediction of the task:
    ``{"label": ..., "probabilities": ...}``. The answer to ``{"texts": [...], "profile": ...}`` is
    ``{"predictions": [...]}`` with the predictions in the order of the texts; if one of them cannot
    be predicted, it is the error of the first such text. Errors are ``{"detail": ...}``, with the
    status

    - 401 without the token of ``token_file``,
    - 404 for an unknown profile,
    - 413 for too many bytes, texts or tokens, and 422 for a text with too many characters,
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
        max_texts: maximum texts of a request.
        max_tokens: maximum tokens of all texts of a request, after each is cut.
        max_characters: maximum characters of a text; longer texts are refused.
        max_bytes: maximum bytes of a request.
        request_seconds: in which a client sends a request; slower connections are closed.
        token_file: file with a secret that clients send as ``Authorization: Bearer``. By default
            everybody who reaches the port is answered.
        allow_delete: answer ``DELETE /profiles/ID``, which deletes a profile and all its versions
            as ``profiles delete`` does; it needs ``token_file``.
        accelerator: cpu, cuda, mps, or auto.

    Raises:
        ValueError: checkpoint or store does not exist, is damaged, or does not match the other, or
            a number is out of range, or ``allow_delete`` is set without ``token_file``.
        OSError: the port is in use.
        RuntimeError: a worker died, which ends the server.
    """
    if allow_delete and token_file is None:
        raise ValueError(
            "allow_delete lets everybody who reaches the server delete profiles: set token_file"
        )
    limits = Limits(
        max_bytes=max_bytes,
        max_texts=max_texts,
        max_tokens=max_tokens,
        max_characters=max_characters,
    )
    api = ProfileAPI(
        str(checkpoint),
        str(store),
        workers=workers,
        slots=slots,
        max_length=max_length,
        max_batch_size=max_batch_size,
        batch_timeout=batch_timeout,
        max_tokens=max_tokens,
    )
    middlewares: list[Any] = [(RequestValidation, {"limits": limits})]
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
    api.sweeps = Sweeps(server.worker_count)
    Operations(str(store), sweeps=api.sweeps, allow_delete=allow_delete).add(server)
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
