"""Figures of several processes, in the format that Prometheus reads."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import pytest
from processes import receive

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from lightning_pelt.profiles.serving.metrics import Measured, Metrics

PATHS = ("/predict", "/profiles/")


def figures(metrics: Metrics, queued: int | None = None) -> dict[tuple[str, ...], float]:
    """Each figure by its name and the values of its labels."""
    families = text_string_to_metric_families(metrics.expose(queued).decode())
    samples = [sample for family in families for sample in family.samples]
    return {
        (
            one.name.removeprefix("lightning_pelt_"),
            *dict(sorted(one.labels.items())).values(),
        ): one.value
        for one in samples
    }


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the status that the query names."""
    status = int(scope["query_string"] or 200)
    if status == 500:
        raise ArithmeticError
    if status == 499:  # of a client that has gone
        return
    await PlainTextResponse("", status)(scope, receive, send)


def test_requests_are_counted_by_path_and_status(metrics_folder: str) -> None:
    metrics = Metrics(metrics_folder)
    app = Measured(application, metrics=metrics, paths=PATHS)
    client = TestClient(app, raise_server_exceptions=False)
    for query in ("", "?422", "", "?500", "?499"):
        client.get(f"/predict{query}")
    for path in ("/profiles/ann?404", "/profiles/b/c", "/x"):
        client.get(path)
    found = figures(metrics, queued=2)
    assert found["requests_total", "/predict", "200"] == 2
    assert found["requests_total", "/predict", "422"] == 1
    assert found["requests_total", "/profiles/", "404"] == 1
    assert found["requests_total", "/profiles/", "200"] == 1
    assert found["requests_total", "other", "200"] == 1
    assert found["requests_total", "/predict", "500"] == 1
    assert found["requests_total", "/predict", "499"] == 1
    assert found["request_seconds_count", "/predict"] == 5
    assert found["request_seconds_bucket", "+Inf", "/predict"] == 5
    assert found["open_requests",] == 0
    assert found["queued_requests",] == 2
    assert not any("ann" in name for key in found for name in key)


def work(connection: Connection, folder: str) -> None:
    metrics = Metrics(folder)
    metrics.texts.labels("200").inc(3)
    metrics.cached.set(5)
    connection.send("done")
    connection.recv()


def test_processes_are_added_up(metrics_folder: str) -> None:
    context = multiprocessing.get_context("fork")
    metrics: Any = Metrics(metrics_folder)
    metrics.texts.labels("200").inc(1)
    metrics.cached.set(2)
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, metrics_folder), daemon=True)
    process.start()
    try:
        assert receive(here) == "done"
        found = figures(metrics)
    finally:
        process.kill()
        process.join()
    assert found["texts_total", "200"] == 4
    assert found["cached_profiles",] == 7
