"""Ends of a server: with all answers after SIGTERM, and without processes after SIGKILL."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from profiles.serving.cases import PEOPLE, request
from profiles.serving.service import Service, check_end, running

from lightning_pelt.profiles.store import ProfileStore

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
pytestmark = pytest.mark.slow  # `test_processes` is fast
LIMIT = 30  # seconds for processes to end


def pending(service: Service, person: str) -> socket.socket:
    """A connection with a request that the server has accepted and not answered."""
    body = json.dumps(request("one", person)).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=60)
    connection.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
    # The server answers this when it waits for the body: the request is accepted.
    assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
    connection.sendall(body)
    return connection


def processes(service: Service) -> list[psutil.Process]:
    main = psutil.Process(service.process.pid)
    return [main, *main.children(recursive=True)]


def answer(connection: socket.socket) -> int:
    response = http.client.HTTPResponse(connection)
    response.begin()
    assert b"probabilities" in response.read()
    return response.status


def test_a_signal_to_all_processes_loses_no_accepted_request(trained: tuple[Path, Path]) -> None:
    """A service manager sends it to all; batches stay open for three seconds."""
    options = ("--batch_timeout=3", "--max_batch_size=64", "--workers=2")
    with running(trained, *options) as service, ExitStack() as stack:
        connections = [stack.enter_context(pending(service, PEOPLE[i % 5])) for i in range(20)]
        family = processes(service)
        for one in family:
            one.send_signal(signal.SIGTERM)
        assert [answer(one) for one in connections] == [200] * 20
        check_end(service.process)
        with pytest.raises(ConnectionRefusedError):
            service.ask(request("one", "ann"))
        assert psutil.wait_procs(family, timeout=LIMIT)[1] == []


def test_a_killed_server_leaves_no_process_and_the_store_as_it_was(
    trained: tuple[Path, Path],
) -> None:
    with ProfileStore(trained[1]) as store:
        before = dict(store.iterate())
    with running(trained, "--batch_timeout=0.01") as service:
        family = processes(service)

        def ask() -> None:
            try:
                while True:
                    service.ask(request("one", "ann"))
            except Exception:  # the connection is lost
                return

        assert service.ask(request("one", "ann"))[0] == 200
        threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        service.process.kill()
        service.process.wait()
        _, alive = psutil.wait_procs(family[1:], timeout=LIMIT)
        names = [one.cmdline() for one in alive]
        for one in alive:
            one.kill()
        assert not names
        for thread in threads:
            thread.join(LIMIT)
        assert not any(thread.is_alive() for thread in threads)
    with ProfileStore(trained[1]) as store:
        assert store.verify() == []
        assert dict(store.iterate()) == before


@pytest.mark.nightly  # CI kills a worker, in `test_http`
def test_the_death_of_an_http_process_ends_the_server_with_an_error(
    trained: tuple[Path, Path],
) -> None:
    with running(trained) as service:
        family = processes(service)
        listening = [
            one.pid
            for one in family
            if any(found.status == psutil.CONN_LISTEN for found in one.net_connections())
        ]
        assert len(listening) == 1
        os.kill(listening[0], signal.SIGKILL)
        _, err = service.process.communicate(timeout=60)
        assert "RuntimeError: a process with an HTTP server died" in err
        assert service.process.returncode not in (0, 2)
        assert psutil.wait_procs(family, timeout=LIMIT)[1] == []
