"""LitServe with a loop that blocks, signals that end it, and workers that may fail to start."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Sequence
from queue import Empty, Queue
from typing import Any

from litserve import LitAPI, LitServer
from litserve.loops.simple_loops import BatchedLoop


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
    """LitServe that signals stop, and that does not wait for workers that have failed."""

    def __init__(self, api: LitAPI, url: str, **options: Any) -> None:
        super().__init__(api, **options)
        self.url = url
        self.inference_workers: list[Any] = []
        self.stopping = False
        self._main = os.getpid()

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

    def queued(self) -> int:
        """The number of requests that no worker has taken yet."""
        return sum(queue.qsize() for queue in self.litapi_request_queues.values())

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
        print(f"ready for POST {self.url}", flush=True)
        return servers

    def end(self) -> None:
        """Terminate all workers, also after a failed start."""
        for worker in self.inference_workers:
            worker.terminate()
            worker.join()


class Stopped(Exception):
    """A signal arrived before the workers were ready."""


class WorkerLost(Exception):
    """A worker ended before it was ready."""
