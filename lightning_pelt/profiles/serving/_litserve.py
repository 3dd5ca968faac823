"""LitServe with a loop that blocks, signals that end it, and workers that may fail to start."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from multiprocessing.connection import wait
from multiprocessing.managers import SyncManager
from queue import Empty, Queue
from typing import Any

from litserve import LitAPI, LitServer
from litserve.loops.simple_loops import BatchedLoop
from litserve.server import no_auth

from lightning_pelt.profiles.serving._pipes import PipeTransport, request_queue
from lightning_pelt.profiles.serving._processes import end_with_parent, start_manager


class BlockingBatchLoop(BatchedLoop):
    """Blocks until a request arrives; LitServe's loop polls a thousand times a second.

    A batch of one request is a list, too. The size of a batch is its number of rows, of which a
    request may have several: ``lit_api.count_rows(request)``.
    """

    def get_batch_requests(
        self, lit_api: LitAPI, request_queue: Queue, transport: Any
    ) -> tuple[list[Any], list[Any]]:
        """The requests within ``batch_timeout`` of the first, and those that waited too long."""
        batch: list[Any] = []
        late: list[Any] = []
        end, rows = math.inf, 0
        while rows < lit_api.max_batch_size:
            try:
                wait = min(1.0, max(0.0, end - time.monotonic()))
                number, uid, asked, request = request_queue.get(timeout=wait)
            except Empty:
                break
            now = time.monotonic()
            end = min(end, now + lit_api.batch_timeout)
            lit_api.metrics.queue_seconds.observe(now - asked)
            if now - asked > lit_api.request_timeout:
                late.append((number, uid))
            else:
                batch.append((number, uid, request))
                rows += lit_api.count_rows(request)
        return batch, late


class SignalServer(LitServer):
    """LitServe that answers all accepted requests after a signal, and then ends its processes."""

    def __init__(self, api: LitAPI, url: str, **options: Any) -> None:
        super().__init__(api, **options)
        self.url = url
        self.inference_workers: list[Any] = []
        self.stopping = self._ending = self._lost = False
        self._main = os.getpid()
        self._manager: SyncManager | None = None

    def run(self, *args: Any, **options: Any) -> None:
        """Run until :meth:`stop`; see LitServe.

        Raises:
            HTTPServerLost: a process with an HTTP server ended before.
        """
        self._manager = start_manager()  # before the socket is open, which it would keep open
        super().run(*args, **options)
        if self._lost:
            raise HTTPServerLost

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """What a process with an HTTP server does from its start to its end."""
        end_with_parent()
        async with super().lifespan(app):
            yield

    def stop(self, *_: object) -> None:
        """Handle a signal: answer pending requests, then end."""
        if os.getpid() != self._main:  # a process with an HTTP server, without pending requests
            os._exit(0)  # an exception would be ignored while the process is being forked
        self.stopping = True
        if self._shutdown_event is not None:
            # In a thread, since the main thread's connection to the event waits for it.
            threading.Thread(target=self._shutdown_event.set).start()

    @property
    def worker_count(self) -> int:
        """The number of processes with a model, on all devices."""
        return len(self._inference_workers_config_for_api(self.lit_api.api_path))

    def verify_worker_status(self) -> None:
        """Wait until all workers are ready.

        Raises:
            Stopped: a signal arrived before.
            WorkerLost: a worker failed in its setup, or died.
        """
        while not self.is_loaded():
            if self.stopping:
                raise Stopped
            if not all(worker.is_alive() for worker in self.inference_workers):
                raise WorkerLost
            time.sleep(0.05)

    def is_loaded(self) -> bool:
        """Whether all workers have loaded model and store."""
        return all(state == "ready" for state in self.workers_setup_status.values())

    def setup_auth(self, lit_api: LitAPI | None = None) -> Any:
        """As LitServe does, without a thread for each request where everybody is answered."""
        found = super().setup_auth(lit_api)
        return _everybody if found is no_auth else found

    def queued(self) -> int | None:
        """The number of requests that no worker has taken yet; None where it is not known."""
        try:
            return sum(queue.qsize() for queue in self.litapi_request_queues.values())
        except NotImplementedError:  # on macOS
            return None

    def _start_server(
        self,
        port: int,
        number: int,
        log_level: str,
        sockets: Sequence[socket.socket],
        *args: Any,
        **options: Any,
    ) -> Any:
        """Accept connections, start the HTTP servers that answer them, and announce it."""
        for one in sockets:
            one.listen()
        servers = super()._start_server(port, number, log_level, sockets, *args, **options)
        for one in sockets:
            one.close()  # so that connections are refused when the HTTP servers have closed it
        sentinels = [server.sentinel for server in servers.values()]
        threading.Thread(target=self._watch, args=(sentinels,), daemon=True).start()
        print(f"ready for POST {self.url}", flush=True)
        return servers

    def _watch(self, sentinels: list[int]) -> None:
        """End when an HTTP server has; LitServe watches only the workers."""
        wait(sentinels)
        if not self._ending:
            self._lost = True
            self._shutdown_event.set()

    def _init_manager(self, num_api_servers: int) -> SyncManager | None:
        """As LitServe does, with a manager that outlives signals."""
        manager = self._manager
        assert manager is not None
        self.workers_setup_status = manager.dict()
        self._shutdown_event = manager.Event()
        # In place of queues of the manager, through which each request and answer went twice.
        self.litapi_request_queues[self.lit_api.api_path] = request_queue()
        self._transport = PipeTransport(num_api_servers)
        return manager

    def _perform_graceful_shutdown(
        self, manager: Any, uvicorn_workers: dict[Any, Any], *args: Any, **options: Any
    ) -> None:
        """End all HTTP servers at once, which answer their requests, and then the workers.

        LitServe ends one after another, and those that are left accept requests until then.
        """
        self._ending = True
        servers = [*uvicorn_workers.values()]
        for server in servers:
            server.terminate()
        end = time.monotonic() + self.uvicorn_graceful_timeout
        for server in servers:
            server.join(max(0.0, end - time.monotonic()))
            server.kill()
        self.lit_api.ending.value = True
        super()._perform_graceful_shutdown(manager, {}, *args, **options)

    def end(self) -> None:
        """End all processes, also after a failed start."""
        self.lit_api.ending.value = True
        for worker in self.inference_workers:
            worker.terminate()
            worker.join()
        if self._manager is not None:
            self._manager.shutdown()


async def _everybody() -> None:
    """A dependency that FastAPI awaits; it runs functions in threads."""


class Stopped(Exception):
    """A signal arrived before the workers were ready."""


class WorkerLost(Exception):
    """A worker ended before it was ready."""


class HTTPServerLost(Exception):
    """A process with an HTTP server ended."""
