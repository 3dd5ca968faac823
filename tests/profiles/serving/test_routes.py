"""The routes for operators, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
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


def client(store: ProfileStore, *, workers: int = 0, allow_delete: bool = True) -> TestClient:
    server: Any = SimpleNamespace(app=FastAPI())
    Operations(store.name, sweeps=Sweeps(workers), allow_delete=allow_delete).add(server)
    return TestClient(server.app)


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
