"""A server process for tests."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

DEADLINE = 180  # seconds for two interpreters to import torch on a busy machine


class Service(NamedTuple):
    """A server process with its checkpoint and store."""

    process: subprocess.Popen[str]
    port: int
    checkpoint: Path
    store: Path

    def ask(self, body: object, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of the prediction; a ``body`` of bytes is sent unchanged."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, answer = self.call("POST", "/predict", data, headers)
        return status, json.loads(answer)

    def call(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        """Status and text of the answer to any request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def together(
        self, bodies: list[Any], headers: dict[str, str] | None = None
    ) -> list[tuple[int, Any]]:
        """The answers to simultaneous requests."""
        answers: list[Any] = [None] * len(bodies)
        start = threading.Barrier(len(bodies))

        def ask(index: int) -> None:
            start.wait()
            answers[index] = self.ask(bodies[index], headers)

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(bodies))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


def started(checkpoint: Path, store: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-m", "lightning_pelt", "profiles", "serve", "--accelerator=cpu",
            f"--checkpoint={checkpoint}", f"--store={store}", *options,
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def running(trained: tuple[Path, Path], *options: str) -> Iterator[Service]:
    """Run a server for a ``with`` block; if the block does not end it, SIGTERM must."""
    port = free_port()
    process = started(*trained, f"--port={port}", *options)
    deadline = threading.Timer(DEADLINE, process.kill)
    deadline.start()
    try:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("ready for POST http://127.0.0.1"):
            pytest.fail(f"the server did not start: {process.communicate()}")
        deadline.cancel()
        yield Service(process, port, *trained)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            check_end(process)
    finally:
        deadline.cancel()
        process.kill()
        process.wait()


def check_end(process: subprocess.Popen[str]) -> None:
    """The process ends without an error."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in out + err and "leaked" not in err, out + err
