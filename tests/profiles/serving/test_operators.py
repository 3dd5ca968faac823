"""What the operator of a running server asks for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from profiles.serving.cases import PEOPLE, request, several
from profiles.serving.described import Described
from profiles.serving.service import Service, running

from lightning_pelt import ProfileStore
from lightning_pelt.cli.profiles.stores import delete_profiles

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
from openapi_spec_validator import validate

pytestmark = pytest.mark.slow  # `test_routes`, `test_sweeps` and `test_metrics` are fast

TOKEN = {"Authorization": "Bearer s3cret"}


@pytest.fixture(scope="module")
def service(
    trained: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """Two workers, a token, and profiles that can be deleted."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("s3cret\n")
    with running(trained, "--workers=2", f"--token_file={token}", "--allow_delete=true") as service:
        yield service


def figures(service: Service) -> dict[str, float]:
    """Each line of the metrics."""
    status, text = service.call("GET", "/metrics", headers=TOKEN)
    assert status == 200
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("lightning_pelt_"): float(value) for name, value in lines}


def reaches(service: Service, name: str, expected: float) -> bool:
    """Whether a metric has a value within a minute: a process counts after it has answered."""
    ticks = (time.sleep(0.1) for _ in range(600))
    return any(figures(service).get(name) == expected for _ in ticks)


def test_health_and_readiness_need_no_token(service: Service) -> None:
    assert service.call("GET", "/health") == (200, "ok")
    assert service.call("GET", "/ready") == (200, '{"status":"ready"}')
    assert service.call("GET", "/metrics")[0] == 401


def test_all_processes_are_in_the_metrics(service: Service) -> None:
    before = figures(service)
    bodies = [request("one", PEOPLE[i % 5]) for i in range(20)] + [several(["one"] * 3, "zoe")]
    answers = service.together(bodies, TOKEN)
    assert sorted(status for status, _ in answers) == [200] * 20 + [404]
    rises = {
        'requests_total{path="/predict",status="200"}': 20,
        'requests_total{path="/predict",status="404"}': 1,
        'request_seconds_count{path="/predict"}': 21,
        'texts_total{status="200"}': 20,
        'texts_total{status="404"}': 3,
        "batch_texts_sum": 23,
        "queue_seconds_count": 21,
    }
    for name, rise in rises.items():
        assert reaches(service, name, before.get(name, 0.0) + rise), name
    after = figures(service)
    assert after["queued_requests"] == 0
    assert after["open_requests"] == 1  # this one
    assert 5 <= after["cached_profiles"] <= 10


def test_answers_are_those_of_the_document(service: Service) -> None:
    """The examples of requests are answered as the document says, and so are errors."""
    assert service.call("GET", "/docs", headers=TOKEN)[0] == 200
    status, text = service.call("GET", "/openapi.json", headers=TOKEN)
    assert status == 200
    described = Described(json.loads(text))
    validate(described.document)
    for body in described.bodies():
        status, text = service.call("POST", "/predict", body, TOKEN)
        assert status == 200
        described.check_answer("/predict", "post", status, text)
        assert ("predictions" in json.loads(text)) == (b"texts" in body)
    seen = set()
    bad: list[tuple[Any, Any]] = [(request("one", "zoe"), TOKEN), ([], TOKEN), ({}, None)]
    for body_, headers in [*bad, (several(["one"] * 100), TOKEN)]:
        status, text = service.call("POST", "/predict", json.dumps(body_).encode(), headers)
        described.check_answer("/predict", "post", status, text)
        seen.add(status)
    assert seen == {401, 404, 413, 422}
    for path in ("/health", "/ready", "/metrics"):
        status, text = service.call("GET", path, headers=TOKEN)
        described.check_answer(path, "get", status, text)
    status, text = service.call("DELETE", "/profiles/zoe", headers=TOKEN)
    described.check_answer("/profiles/{id}", "delete", status, text)


def test_a_profile_is_deleted_with_the_token_only(service: Service) -> None:
    for _ in range(4):
        assert service.ask(request("one", "ann"), TOKEN)[0] == 200
    assert service.call("DELETE", "/profiles/ann")[0] == 401
    assert service.ask(request("one", "ann"), TOKEN)[0] == 200
    assert service.call("DELETE", "/profiles/ann", headers=TOKEN) == (204, "")
    assert service.ask(request("one", "ann"), TOKEN)[0] == 404
    assert service.call("DELETE", "/profiles/ann", headers=TOKEN)[0] == 404
    delete_profiles(str(service.store), "bob")
    assert service.ask(request("one", "bob"), TOKEN)[0] == 404
    assert {service.ask(request("one", name), TOKEN)[0] for name in PEOPLE[2:]} == {200}


def test_deleted_profiles_leave_the_memory_of_all_workers(service: Service) -> None:
    """Also if the command has deleted them and nobody asks for them again."""
    with ProfileStore(service.store) as store:
        rest = list(store.ids())
        store.put("fay", store.get("eve"))
        delete_profiles(str(service.store), rest)
    service.ask(request("one", "fay"), TOKEN)
    assert reaches(service, "cached_profiles", 1)
    assert service.call("DELETE", "/profiles/fay", headers=TOKEN) == (204, "")
    assert figures(service)["cached_profiles"] == 0  # at once


def test_a_server_without_its_store_is_alive_and_not_ready(service: Service) -> None:
    away = service.store.with_suffix(".away")
    service.store.rename(away)
    ticks = (time.sleep(0.1) for _ in range(600))
    assert any(service.call("GET", "/ready")[0] == 503 for _ in ticks)
    assert service.call("GET", "/health")[0] == 200
    away.rename(service.store)
    ticks = (time.sleep(0.1) for _ in range(600))
    assert any(service.call("GET", "/ready")[0] == 200 for _ in ticks)
