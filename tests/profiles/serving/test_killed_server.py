"""A server that is killed while it answers leaves its store as it was, and no process behind."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil
import pytest
from profiles.serving.test_http import request, running

from lightning_pelt.profiles.store import ProfileStore

pytestmark = pytest.mark.slow


def test_a_killed_server(trained: tuple[Path, Path]) -> None:
    with ProfileStore(trained[1]) as store:
        before = dict(store.iterate())
    with running(trained, "--batch_timeout=0.01") as service:
        processes = psutil.Process(service.process.pid).children(recursive=True)

        def ask() -> None:
            try:
                while True:
                    service.ask(request("one", "ann"))
            except Exception:  # the connection is lost
                return

        assert service.ask(request("one", "ann"))[0] == 200
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        service.process.kill()
        service.process.wait()
        for thread in threads:
            thread.join(60)
        _, alive = psutil.wait_procs(processes, timeout=30)
        names = [one.cmdline() for one in alive]
        for one in alive:
            one.kill()
        assert not names
    with ProfileStore(trained[1]) as store:
        assert store.verify() == []
        assert dict(store.iterate()) == before
    with running(trained) as service:
        assert service.ask(request("one", "ann"))[0] == 200
