"""``POST /predict`` with LitServe: requests of different users share a forward."""

from __future__ import annotations

import logging
import os
import signal
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

try:
    from lightning_pelt.profiles.serving._litserve import (
        HTTPServerLost,
        SignalServer,
        Stopped,
        WorkerLost,
    )
    from lightning_pelt.profiles.serving._processes import SIGNALS
    from lightning_pelt.profiles.serving._sweeps import Sweeps
    from lightning_pelt.profiles.serving.bearer_token import BearerToken, read_token
    from lightning_pelt.profiles.serving.loading import Dtype
    from lightning_pelt.profiles.serving.metrics import FOLDER, Measured, Metrics
    from lightning_pelt.profiles.serving.openapi import document
    from lightning_pelt.profiles.serving.request_validation import (
        PATH,
        Limits,
        RequestValidation,
    )
    from lightning_pelt.profiles.serving.routes import HEALTH, METRICS, PROFILES, READY, Operations
    from lightning_pelt.profiles.serving.slow_clients import TimedProtocol
    from lightning_pelt.profiles.serving.unread_body import UnreadBody
    from lightning_pelt.profiles.serving.worker import ProfileAPI
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "serving over HTTP needs LitServe: pip install 'lightning-pelt[serve]'"
    ) from error

LOOPBACK = ("127.0.0.1", "localhost", "::1")

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
    dtype: Dtype | None = None,
) -> None:
    """Answer requests for predictions until SIGTERM or SIGINT.

    ``/docs`` shows the requests and answers, and ``/openapi.json`` describes them for programs.
    ``/health`` tells whether the server is alive, ``/ready`` whether all workers have loaded the
    model and the store can be read, and ``/metrics`` has figures for Prometheus.

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
        dtype: of the base's weights, by default that of the training. ``bfloat16`` answers more
            requests where the processor multiplies it faster (AMX, tensor cores), with rounding.

    Raises:
        ValueError: checkpoint or store does not exist, is damaged, or does not match the other, or
            a number is out of range, or ``allow_delete`` is set without ``token_file``.
        OSError: the port is in use.
        RuntimeError: a process of the server died, which ends all of it.
    """
    if allow_delete and token_file is None:
        raise ValueError(
            "allow_delete lets everybody who reaches the server delete profiles: set token_file"
        )
    token = None if token_file is None else read_token(token_file)
    if token is None and host not in LOOPBACK:
        _logger.warning("everybody who reaches %s:%s is answered: set token_file", host, port)
    limits = Limits(
        max_bytes=max_bytes,
        max_texts=max_texts,
        max_tokens=max_tokens,
        max_characters=max_characters,
    )
    with TemporaryDirectory(prefix="lightning-pelt-", ignore_cleanup_errors=True) as folder:
        api = ProfileAPI(
            str(checkpoint),
            str(store),
            metrics_folder=folder,
            workers=workers,
            slots=slots,
            max_length=max_length,
            max_batch_size=max_batch_size,
            batch_timeout=batch_timeout,
            max_tokens=max_tokens,
            dtype=dtype,
        )
        metrics = Metrics(folder)
        server = _server(
            api,
            limits,
            token,
            url=f"http://{host}:{port}{PATH}",
            accelerator=accelerator,
            metrics=metrics,
        )
        sweeps = api.sweeps = Sweeps(server.worker_count)
        operations = Operations(
            server, str(store), metrics=metrics, sweeps=sweeps, allow_delete=allow_delete
        )
        operations.add()
        try:
            _run(server, api, host, port, seconds=request_seconds)
        finally:
            server.end()
            os.environ.pop(FOLDER, None)


def _server(
    api: ProfileAPI,
    limits: Limits,
    token: str | None,
    *,
    url: str,
    accelerator: str,
    metrics: Metrics,
) -> SignalServer:
    """The server of ``api``; what is in front of it, the last first."""
    middlewares: list[Any] = [(RequestValidation, {"limits": limits})]
    if token is not None:
        middlewares.append((BearerToken, {"token": token}))
    paths = (PATH, PROFILES, HEALTH, READY, METRICS)
    middlewares.append((Measured, {"metrics": metrics, "paths": paths}))
    middlewares.append((UnreadBody, {}))
    server = SignalServer(
        api,
        url,
        accelerator=accelerator,
        workers_per_device=api.workers,
        middlewares=middlewares,
    )
    described = document(secured=token is not None)
    server.app.openapi = lambda: described
    return server


def _run(server: SignalServer, api: ProfileAPI, host: str, port: int, *, seconds: float) -> None:
    """Run the server until a signal; see :func:`serve` for the errors."""
    options: dict[str, Any] = {"http": partial(TimedProtocol, seconds=seconds)}
    before = {number: signal.signal(number, server.stop) for number in SIGNALS}
    try:
        server.run(host, port, log_level="warning", generate_client_file=False, **options)
    except Stopped:
        pass
    except WorkerLost:
        reason = "it was killed" if api.setup_errors.empty() else api.setup_errors.get()
        raise ValueError(f"a worker could not start: {reason}") from None
    except (EOFError, ConnectionError) as error:  # from the process with LitServe's queues
        raise RuntimeError("a worker died while serving: see its output above") from error
    except HTTPServerLost as error:
        raise RuntimeError("a process with an HTTP server died: see its output above") from error
    except SystemExit:  # from uvicorn, which has logged the reason
        raise OSError(f"cannot listen on {host}:{port}: choose another port") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
