"""Stores that several threads and processes use at the same time, one of which may be killed."""

from __future__ import annotations

import signal
import threading

import pytest
from processes import TIMEOUT, receive, second_process
from profiles.samples import random_profile
from profiles.store_processes import create_store, put_until_killed, read_once, read_versions
from profiles.stores import at_commit, some

from lightning_pelt.profiles.store import ProfileStore


def test_iteration_continues_while_others_write(url: str, store: ProfileStore) -> None:
    store.put_many(some(10).items())
    seen = []
    with ProfileStore(url) as writer:
        for id, profile in store.iterate(batch=2):
            seen.append(id)
            assert profile == (random_profile(77) if id == "u0006" else some(10)[id])
            if id == "u0001":
                writer.put("u0006", random_profile(77))  # ahead: the new version is read
                writer.put("u0000", random_profile(77))  # behind
                writer.delete("u0008")
    assert seen == [f"u{i:04d}" for i in range(10) if i != 8]


@pytest.mark.slow
def test_a_second_process_reads_complete_profiles_while_this_one_writes(
    url: str, store: ProfileStore
) -> None:
    store.put("a", random_profile(0, n=20))
    with second_process(read_versions, url, 40) as (reader, messages):
        assert receive(messages) == "reading"
        for seed in range(1, 40):
            store.put("a", random_profile(seed, n=20))
            store.put_many(some(20, first=20 * seed).items())
        assert receive(messages) > 0
        reader.join(TIMEOUT)
        assert reader.exitcode == 0


@pytest.mark.slow
def test_readers_neither_wait_for_a_writer_nor_see_its_changes(
    url: str, store: ProfileStore
) -> None:
    store.put("a", random_profile(0))
    reads = []

    def read_elsewhere() -> None:
        with second_process(read_once, url) as (_, messages):
            reads.append(receive(messages))

    with at_commit(read_elsewhere):
        store.put_many([("a", random_profile(1)), ("b", random_profile(2))])
    assert reads == ["read"]
    assert store.get_many(["a", "b"]) == {"a": random_profile(1), "b": random_profile(2)}


def test_writers_run_one_after_another_and_each_put_is_a_version(url: str) -> None:
    def write(first: int) -> None:
        with ProfileStore(url) as store:
            for seed in range(first, first + 20):
                given.append((store.put("shared", random_profile(seed)), seed))

    given: list[tuple[int, int]] = []
    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with ProfileStore(url) as store:
        assert store.versions("shared") == list(range(1, 61))
        assert sorted(version for version, _ in given) == list(range(1, 61))
        for version, seed in given:
            assert store.get("shared", version) == random_profile(seed)


def test_threads_share_one_store(store: ProfileStore) -> None:
    profiles = some(50)
    store.put_many(profiles.items())
    wrong = []

    def read() -> None:
        for _ in range(20):
            if store.get_many(profiles) != profiles:
                wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for seed in range(20):
        store.put(f"new{seed}", random_profile(seed))
    for thread in threads:
        thread.join()
    assert wrong == [] and len(store) == 70


def _check_after_a_crash(url: str, at_least: int) -> int:
    with ProfileStore(url) as store:
        count = len(store)
        assert count % 100 == 0 and count >= at_least
        expected = {f"u{i:05d}": random_profile(i, n=20) for i in range(count)}
        assert dict(store.iterate()) == expected
        assert store.verify() == []
        assert store.put("u00000", random_profile(5)) == (2 if count else 1)
        return count


@pytest.mark.slow
def test_a_writer_killed_in_a_transaction_loses_that_transaction(url: str) -> None:
    with second_process(put_until_killed, url, 3) as (writer, messages):
        assert receive(messages) == "loading"
        assert "nothing is committed" in receive(messages)
        writer.kill()
        writer.join(TIMEOUT)
        assert writer.exitcode == -signal.SIGKILL
    assert _check_after_a_crash(url, at_least=200) == 200


@pytest.mark.slow
def test_a_writer_killed_at_any_time_leaves_complete_transactions(url: str) -> None:
    with second_process(put_until_killed, url, 0) as (writer, messages):
        assert receive(messages) == "loading"
        with ProfileStore(url) as store:
            while len(store) < 300:
                assert writer.is_alive()
            writer.kill()
            writer.join(TIMEOUT)
        assert writer.exitcode == -signal.SIGKILL
    assert _check_after_a_crash(url, at_least=300) < 1_000_000


def test_two_processes_may_create_the_same_store_at_once(url: str) -> None:
    with second_process(create_store, url) as (_, messages):
        assert receive(messages) == "ready"
        messages.send("go")
        with ProfileStore(url) as store:
            store.put("here", random_profile())
        assert receive(messages) == "created"
    with ProfileStore(url) as store:
        assert list(store.ids()) == ["here", "there"]
