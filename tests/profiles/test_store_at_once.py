"""Stores that several threads and processes use at once, one of which may die."""

from __future__ import annotations

import signal
import threading

from profiles.samples import random_profile
from profiles.stores import at_commit, python, some

from lightning_pelt.profiles.store import (
    ProfileStore,
)


def test_iterating_goes_on_while_others_write(url: str, store: ProfileStore) -> None:
    store.put_many(some(10).items())
    seen = []
    with ProfileStore(url) as writer:
        for id, profile in store.iterate(batch=2):
            seen.append(id)
            assert profile == (random_profile(77) if id == "u0006" else some(10)[id])
            if id == "u0001":
                writer.put("u0006", random_profile(77))  # ahead: is seen as it is now
                writer.put("u0000", random_profile(77))  # behind
                writer.delete("u0008")
    assert seen == [f"u{i:04d}" for i in range(10) if i != 8]


READER = """
import sys
from profiles.samples import random_profile
from lightning_pelt.profiles.store import ProfileStore

versions = [random_profile(seed, n=20) for seed in range(int(sys.argv[2]))]
with ProfileStore(sys.argv[1]) as store:
    print("reading", flush=True)
    reads, last = 0, 0
    while last < len(versions) - 1:
        found = versions.index(store.get("a"))
        assert found >= last, "an older version came back"
        reads, last = reads + 1, found
    print(reads, flush=True)
"""


def test_a_second_process_reads_whole_profiles_while_this_one_writes(
    url: str, store: ProfileStore
) -> None:
    store.put("a", random_profile(0, n=20))
    reader = python(READER, url, "40")
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"
    for seed in range(1, 40):
        store.put("a", random_profile(seed, n=20))
        store.put_many(some(20, first=20 * seed).items())
    out, _ = reader.communicate(timeout=60)
    assert reader.returncode == 0 and int(out) > 0


READ_ONCE = """
import sys
from profiles.samples import random_profile
from lightning_pelt.profiles.store import ProfileStore

with ProfileStore(sys.argv[1]) as store:
    assert store.get("a") == random_profile(0) and list(store.ids()) == ["a"]
    assert store.verify() == []
"""


def test_readers_do_not_wait_for_a_writer_and_see_nothing_of_it_yet(
    url: str, store: ProfileStore
) -> None:
    store.put("a", random_profile(0))
    codes = []

    def read_elsewhere() -> None:
        reader = python(READ_ONCE, url)
        reader.communicate(timeout=60)
        codes.append(reader.returncode)

    with at_commit(read_elsewhere):
        store.put_many([("a", random_profile(1)), ("b", random_profile(2))])
    assert codes == [0]
    assert store.get_many(["a", "b"]) == {"a": random_profile(1), "b": random_profile(2)}


def test_writers_take_turns_and_each_put_is_a_version(url: str) -> None:
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


LOADER = """
import sys
from profiles.samples import random_profile
from sqlalchemy import Engine, event
import lightning_pelt.profiles.store as module

module.TRANSACTION, commits, stop_at = 100, 0, int(sys.argv[2])
store = module.ProfileStore(sys.argv[1])

@event.listens_for(Engine, "commit")
def stop(connection):
    global commits
    commits += 1
    if commits == stop_at:
        print("everything is written, nothing is committed", flush=True)
        sys.stdin.read()

def items():
    for i in range(1_000_000):
        yield f"u{i:05d}", random_profile(i, n=20)

if stop_at == 0:
    print("loading", flush=True)
store.put_many(items())
"""


def _check_after_a_crash(url: str, at_least: int) -> int:
    with ProfileStore(url) as store:
        count = len(store)
        assert count % 100 == 0 and count >= at_least
        expected = {f"u{i:05d}": random_profile(i, n=20) for i in range(count)}
        assert dict(store.iterate()) == expected
        assert store.verify() == []
        assert store.put("u00000", random_profile(5)) == (2 if count else 1)
        return count


def test_a_writer_killed_in_the_middle_of_a_transaction_loses_that_one(url: str) -> None:
    loader = python(LOADER, url, "3")
    assert loader.stdout is not None
    assert "nothing is committed" in loader.stdout.readline()
    loader.send_signal(signal.SIGKILL)
    loader.communicate(timeout=60)
    assert loader.returncode == -signal.SIGKILL
    assert _check_after_a_crash(url, at_least=200) == 200


def test_a_writer_killed_at_any_time_leaves_whole_transactions(url: str) -> None:
    loader = python(LOADER, url, "0")
    assert loader.stdout is not None
    assert loader.stdout.readline() == "loading\n"
    with ProfileStore(url) as store:
        while len(store) < 300:  # it is at work, wherever it is
            assert loader.poll() is None
        loader.send_signal(signal.SIGKILL)
        loader.communicate(timeout=60)
    assert loader.returncode == -signal.SIGKILL
    assert _check_after_a_crash(url, at_least=300) < 1_000_000


MAKER = """
import sys
from profiles.samples import random_profile
from lightning_pelt.profiles.store import ProfileStore

print("ready", flush=True)
sys.stdin.readline()
with ProfileStore(sys.argv[1]) as store:
    store.put("there", random_profile())
"""


def test_two_processes_may_make_the_same_store_at_once(url: str) -> None:
    maker = python(MAKER, url)
    assert maker.stdout is not None and maker.stdin is not None
    assert maker.stdout.readline() == "ready\n"
    maker.stdin.write("go\n")
    maker.stdin.flush()
    with ProfileStore(url) as store:
        store.put("here", random_profile())
    maker.communicate(timeout=60)
    assert maker.returncode == 0
    with ProfileStore(url) as store:
        assert list(store.ids()) == ["here", "there"]
