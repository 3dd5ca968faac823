"""The routes for operators, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from profiles.samples import random_profile

from lightning_pelt import ProfileStore

pytest.importorskip("litserve", reason="LitServe is not installed: extra `serve`")
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lightning_pelt.profiles.serving import routes
from lightning_pelt.profiles.serving._sweeps import Sweeps
from lightning_pelt.profiles.serving.http import serve
from lightning_pelt.profiles.serving.routes import Operations

IDS = ["ann", "a/b", "../x?y#z", "Zoë 🙂", "100%", " "]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ProfileStore]:
    with ProfileStore(tmp_path / "profiles.db") as store:
        for id in IDS:
            store.put(id, random_profile(0))
            store.put(id, random_profile(1))
        yield store


class Server(NamedTuple):
    """What the routes need of a server."""

    app: FastAPI
    loaded: bool

    def is_loaded(self) -> bool:
        return self.loaded

    def queued(self) -> int:
        return 3


def client(
    store: ProfileStore, *, workers: int = 0, allow_delete: bool = True, loaded: bool = True
) -> TestClient:
    server: Any = Server(FastAPI(), loaded)
    metrics: Any = SimpleNamespace(expose=lambda queued: f"queued {queued}")
    options: dict[str, Any] = {"metrics": metrics, "allow_delete": allow_delete}
    Operations(server, store.name, sweeps=Sweeps(workers), **options).add()
    return TestClient(server.app)


def test_a_server_is_ready_when_models_are_loaded_and_the_store_answers(
    store: ProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = client(store).get("/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    answer = client(store, loaded=False).get("/ready")
    assert (answer.status_code, answer.json()) == (503, {"detail": "the model is not loaded"})
    monkeypatch.setattr(routes, "FRESH", -1.0)
    late = client(store)
    assert late.get("/ready").status_code == 200
    Path(store.name).rename(f"{store.name}.away")
    answer = late.get("/ready")
    assert answer.status_code == 503
    assert answer.json() == {"detail": "the store of the profiles cannot be read"}
    Path(f"{store.name}.away").rename(store.name)
    assert late.get("/ready").status_code == 200


def test_a_check_is_answered_again_for_a_second(
    store: ProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks often does not load the store."""
    monkeypatch.setattr(routes, "FRESH", 3600.0)
    asked, latest = [], ProfileStore.latest

    def counted(self: ProfileStore, ids: list[str]) -> dict[str, int]:
        asked.append(ids)
        return latest(self, ids)

    monkeypatch.setattr(ProfileStore, "latest", counted)
    client_ = client(store)
    assert {client_.get("/ready").status_code for _ in range(3)} == {200}
    assert len(asked) == 1


def test_figures_have_the_type_of_prometheus(store: ProfileStore) -> None:
    answer = client(store).get("/metrics")
    assert answer.text == "queued 3"
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")


@pytest.mark.parametrize("id", IDS)
def test_a_deleted_profile_leaves_nothing_in_the_store(store: ProfileStore, id: str) -> None:
    client_, path = client(store), f"/profiles/{quote(id, safe='')}"
    answer = client_.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert set(store.ids()) == {*IDS} - {id}
    files = [file.read_bytes() for file in Path(store.name).parent.iterdir()]
    assert id != IDS[3] or not any("Zoë".encode() in content for content in files)
    again = client_.delete(path)
    assert again.status_code == 404
    assert again.json() == {"detail": f"there is no profile {id!r}"}


@pytest.mark.parametrize("id", ["", "zoe", "a" * 300, "a%00b", "%ff"])
def test_an_unknown_profile_is_answered_with_404(store: ProfileStore, id: str) -> None:
    assert client(store).delete(f"/profiles/{id}").status_code == 404
    assert len(store) == len(IDS)


def test_a_server_deletes_nothing_unless_it_is_told_to(store: ProfileStore) -> None:
    answer = client(store, allow_delete=False).delete("/profiles/ann")
    assert answer.status_code == 403
    assert "--allow_delete=true" in answer.json()["detail"]
    assert "ann" in store
    with pytest.raises(ValueError, match=r"allow_delete lets everybody .*: set token_file"):
        serve("model.ckpt", store.name, allow_delete=True)


def test_other_methods_do_not_delete(store: ProfileStore) -> None:
    for method in ("GET", "POST", "PUT", "PATCH"):
        assert client(store).request(method, "/profiles/ann").status_code == 405
    assert "ann" in store


def test_a_worker_that_is_late_is_named(
    store: ProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "SWEEP_SECONDS", 0.0)
    answer = client(store, workers=1).delete("/profiles/ann")
    assert answer.status_code == 202
    assert "'ann' is deleted; a worker has not" in answer.json()["detail"]
    assert "ann" not in store


@pytest.mark.parametrize(
    ("error", "status"), [(PermissionError("secret"), 403), (ConnectionError("secret"), 503)]
)
def test_a_store_that_cannot_be_written_is_named(
    store: ProfileStore, monkeypatch: pytest.MonkeyPatch, error: OSError, status: int
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(ProfileStore, "delete", fails)
    answer = client(store).delete("/profiles/ann")
    assert answer.status_code == status
    assert "secret" not in answer.text
