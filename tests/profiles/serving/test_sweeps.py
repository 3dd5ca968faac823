"""Deleted profiles leave the caches of workers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from profiles.serving.cases import TEXTS

from lightning_pelt import ProfileServer, ProfileStore
from lightning_pelt.profiles.serving import _sweeps
from lightning_pelt.profiles.serving._sweeps import Sweeps
from lightning_pelt.profiles.serving.loading import load_model


def nonzero(server: ProfileServer) -> int:
    """The number of slots with an adapter, norm or head that is not zero."""
    cache = server.cache
    parts = [part for pool in cache._pools for part in (pool.A, pool.c, pool.B, pool.norms)]
    assert cache._heads is not None
    own = [part for part in [*parts, cache._heads] if part is not None and len(part) > 1]
    used = sum(part.abs().flatten(1).sum(1) for part in own)  # without the norms that are shared
    return int((used > 0).sum())


def test_deleted_profiles_and_earlier_versions_are_overwritten(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    with ProfileStore(trained[1]) as old, ProfileStore(tmp_path / "profiles.db") as store:
        store.put_many(old.iterate())
        server = ProfileServer(load_model(trained[0]), store, max_length=16, slots=8)
        before = server.predict(TEXTS[:4], ["ann", "bob", "cid", "dora"])
        server.forget_deleted()
        assert len(server.cache) == nonzero(server) == 4
        store.delete("bob")
        store.put("cid", store.get("eve"))
        server.forget_deleted()
        assert [id for id, _ in server.cache.keys] == ["ann", "dora"]
        assert nonzero(server) == 2
        after = server.predict([TEXTS[0], TEXTS[3]], ["ann", "dora"])
        for one, other in zip(after, [before[0], before[3]], strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        server.forget()
        assert len(server.cache) == nonzero(server) == 0


def test_a_request_for_a_deleted_profile_overwrites_it(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    with ProfileStore(trained[1]) as old, ProfileStore(tmp_path / "profiles.db") as store:
        store.put("ann", old.get("ann"))
        server = ProfileServer(load_model(trained[0]), store, max_length=16, slots=8)
        server.predict(["one"], ["ann"])
        store.delete("ann")
        (error,) = server.answer(["one"], ["ann"])
        assert isinstance(error, LookupError)
        assert len(server.cache) == nonzero(server) == 0


def test_a_profile_that_does_not_fit_leaves_its_slot_free(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the error comes while slots are written."""
    with ProfileStore(trained[1]) as store:
        server = ProfileServer(load_model(trained[0]), store, max_length=16, slots=2)
        expected = server.predict(["one", "two"], ["ann", "bob"])
        fill = server.cache._fill

        def fails(*args: object) -> None:
            fill(*args)  # type: ignore[arg-type]
            raise MemoryError

        monkeypatch.setattr(server.cache, "_fill", fails)
        (error,) = server.answer(["one"], ["cid"])
        assert isinstance(error, MemoryError)
        assert len(server.cache) == nonzero(server) == 1
        monkeypatch.undo()
        assert server.predict(["one", "two"], ["ann", "bob"]) == expected


def test_a_store_that_cannot_be_read_keeps_the_cache(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProfileStore(trained[1]) as store:
        server = ProfileServer(load_model(trained[0]), store, max_length=16, slots=2)
        server.predict(["one"], ["ann"])

        def lost(_: object) -> None:
            raise ConnectionError("lost")

        monkeypatch.setattr(store, "latest", lost)
        sweeps = Sweeps(1)
        sweeps.once(0, server.forget_deleted)
        assert not sweeps.wait(0.0)
        assert len(server.cache) == 1


def test_all_workers_sweep_when_somebody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sweeps, "EVERY", 3600.0)
    sweeps, swept = Sweeps(2), [0, 0]

    def sweep(number: int) -> None:
        swept[number] += 1

    stops = [sweeps.start(number, partial(sweep, number)) for number in range(2)]
    assert sweeps.wait(60.0)
    assert swept == [1, 1]
    assert sweeps.wait(60.0)
    for stop in stops:
        stop()
    assert not sweeps.wait(0.02)
    assert swept == [2, 2]


def test_a_sweep_that_began_before_does_not_count() -> None:
    """It may have read the store before a profile was deleted."""
    sweeps = Sweeps(2)
    sweeps.once(0, lambda: None)
    sweeps.once(1, lambda: None)
    assert not sweeps.wait(0.02)


def test_a_sweep_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def bug() -> None:
        raise ArithmeticError

    sweeps = Sweeps(1)
    sweeps.once(0, bug)
    assert "may still be in the memory of worker 0" in caplog.text
