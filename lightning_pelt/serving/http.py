"""``POST /predict`` on LitServe: requests of different users share a forward."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import torch

from lightning_pelt.profiles.store import DamagedProfile, UnknownProfile
from lightning_pelt.serving.opening import load_model, open_store
from lightning_pelt.serving.server import ProfileServer

try:
    from litserve import LitAPI, LitServer
    from litserve.loops.simple_loops import BatchedLoop
    from starlette.responses import JSONResponse

    from lightning_pelt.serving.requests import PATH, CheckRequest, refusal
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "serving over HTTP needs LitServe: pip install 'lightning-pelt[serve]'"
    ) from error

SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
    accelerator: str = "auto",
) -> None:
    """Answer ``POST /predict`` and ``GET /health`` until SIGTERM or SIGINT comes.

    A request is ``{"text": ..., "profile": ...}``, its answer what the task predicts: ``{"label":
    ..., "probabilities": ...}``. Errors are ``{"detail": ...}``: 404 is an unknown profile, 413 a
    body and 422 a text that is too large, 422 also what is no such request, and 500 a profile whose
    row is damaged; none of them touches the other requests of a batch. A signal lets those that are
    in flight be answered.

    Args:
        checkpoint: of a fit with X-PEFT, whose shared parts serve all profiles.
        store: of its profiles, see :class:`ProfileStore`. Profiles may be put while it is served.
        host: 127.0.0.1 is reached from this machine alone, 0.0.0.0 or :: from others too.
        port: 1024 to 65535.
        workers: processes with a model, on each device.
        max_batch_size: rows of one forward.
        batch_timeout: seconds that a batch waits for more requests.
        slots: adapters that each worker keeps, see :class:`ProfileServer`.
        max_length: tokens of a text; what is longer is cut.
        max_characters: of a text; what is longer is refused.
        max_bytes: of a request.
        accelerator: cpu, cuda, mps, or auto.

    Raises:
        ValueError: there is no such checkpoint or store, one is damaged, they do not belong
            together, or a number is out of its range.
        OSError: the port is taken.
        RuntimeError: a worker died, and with it the service ends.
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
    server = Server(
        api,
        f"http://{host}:{port}{PATH}",
        accelerator=accelerator,
        workers_per_device=workers,
        middlewares=[(CheckRequest, limits)],
    )
    before = {number: signal.signal(number, server.stop) for number in SIGNALS}
    try:
        server.run(host=host, port=port, log_level="warning", generate_client_file=False)
    except Stopped:
        pass
    except WorkerLost:
        fault = "it was killed" if api.fault.empty() else api.fault.get()
        raise ValueError(f"a worker could not start: {fault}") from None
    except (EOFError, ConnectionError):  # of the process that holds LitServe's queues
        raise RuntimeError("a worker died while it served: its last words are above") from None
    except SystemExit:  # uvicorn's, which has logged why
        raise OSError(f"{host}:{port} cannot be listened on: choose another port") from None
    finally:
        server.end()
        for number, handler in before.items():
            signal.signal(number, handler)


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
        super().__init__(max_batch_size, batch_timeout, PATH, loop=Loop())
        self.checkpoint, self.url, self.workers = checkpoint, store, workers
        self.options = {"slots": slots, "max_length": max_length, "batch_size": max_batch_size}
        self.fault = multiprocessing.get_context("spawn").SimpleQueue()  # why `setup` failed

    def setup(self, device: str) -> None:
        """Load model and store; called once, by LitServe, in the worker."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when requests are answered
        torch.set_num_threads(max(1, torch.get_num_threads() // self.workers))
        try:
            self.store = open_store(self.url)
            model = load_model(self.checkpoint, device)
            self.server = ProfileServer(model, self.store, **self.options)
        except Exception as error:
            self.fault.put(str(error))
            if isinstance(error, OSError | ValueError):
                logging.disable()  # the parent says it, without a traceback
            raise
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self.store.close()
        raise SystemExit(0)

    def predict(self, rows: list[dict[str, str]], **_: Any) -> list[JSONResponse]:
        """An answer to each row. One that is raised would be LitServe's answer to all of them."""
        refused: dict[str, JSONResponse] = {}
        while True:
            good = [row for row in rows if row["profile"] not in refused]
            try:
                found = self.server.predict(
                    [row["text"] for row in good], [row["profile"] for row in good]
                )
                break
            except UnknownProfile as error:
                for id in error.ids:
                    refused[id] = refusal(404, f"there is no profile {id!r}")
            except DamagedProfile as error:
                for id, reason in error.reasons.items():
                    refused[id] = refusal(500, f"the profile {id!r} is damaged: {reason}")
        answers = iter(found)
        return [refused.get(row["profile"]) or JSONResponse(next(answers)) for row in rows]


class Loop(BatchedLoop):
    """Sleeps until a request comes; LitServe's own loop asks for one a thousand times a second.

    Batches of one are lists here, too.
    """

    def get_batch_requests(
        self, lit_api: LitAPI, request_queue: Queue, transport: Any
    ) -> tuple[list[Any], list[Any]]:
        """Requests, from the first on for ``batch_timeout``, and those that waited too long."""
        batch: list[Any] = []
        late: list[Any] = []
        end = math.inf
        while len(batch) < lit_api.max_batch_size:
            try:
                wait = min(1.0, max(0.0, end - time.monotonic()))
                number, uid, asked, request = request_queue.get(timeout=wait)
            except Empty:
                break
            now = time.monotonic()
            end = min(end, now + lit_api.batch_timeout)
            if now - asked > lit_api.request_timeout:
                late.append((number, uid))
            else:
                batch.append((number, uid, request))
        return batch, late


class Server(LitServer):
    """LitServe, stopped by signals, and not waiting for workers that will never be ready."""

    def __init__(self, api: ProfileAPI, url: str, **options: Any) -> None:
        super().__init__(api, **options)
        self.url = url
        self.inference_workers: list[Any] = []
        self.stopping = False
        self._main = os.getpid()

    def stop(self, *_: object) -> None:
        """The handler of a signal: let requests in flight be answered, and end."""
        if os.getpid() != self._main:  # a process with the HTTP side, which is through with them
            raise SystemExit(0)
        self.stopping = True
        if self._shutdown_event is not None:
            # In a thread: the main one's connection to the event is busy with waiting for it.
            threading.Thread(target=self._shutdown_event.set).start()

    def verify_worker_status(self) -> None:
        """Wait until all workers are ready.

        Raises:
            Stopped: a signal came first.
            WorkerLost: one could not be set up, or died.
        """
        while not all(state == "ready" for state in self.workers_setup_status.values()):
            if self.stopping:
                raise Stopped
            if not all(worker.is_alive() for worker in self.inference_workers):
                raise WorkerLost
            time.sleep(0.05)
        print(f"ready for POST {self.url}", flush=True)

    def end(self) -> None:
        """Leave no worker behind, wherever the start was given up."""
        for worker in self.inference_workers:
            worker.terminate()
            worker.join()


class Stopped(Exception):
    """A signal came before the workers were ready."""


class WorkerLost(Exception):
    """A worker ended before it was ready."""
