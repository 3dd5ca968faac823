"""What second processes do with a store; each sends messages to the test."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing.connection import Connection

from profiles.samples import random_profile
from profiles.stores import at_commit

from lightning_pelt import Profile
from lightning_pelt.profiles import _writing
from lightning_pelt.profiles.store import ProfileStore


def read_versions(test: Connection, url: str, count: int) -> None:
    """Read a profile until its last version is there; no read may return an earlier version."""
    versions = [random_profile(seed, n=20) for seed in range(count)]
    with ProfileStore(url) as store:
        test.send("reading")
        reads, last = 0, 0
        while last < count - 1:
            found = versions.index(store.get("a"))
            assert found >= last, "an earlier version was read"
            reads, last = reads + 1, found
    test.send(reads)


def read_once(test: Connection, url: str) -> None:
    """Read a store that contains one profile."""
    with ProfileStore(url) as store:
        assert store.get("a") == random_profile(0)
        assert list(store.ids()) == ["a"]
        assert store.verify() == []
    test.send("read")


def put_until_killed(test: Connection, url: str, stop_at: int) -> None:
    """Put profiles, 100 per transaction; with ``stop_at``, wait before that commit."""
    _writing.TRANSACTION = 100
    commits = 0

    def stop() -> None:
        nonlocal commits
        commits += 1
        if commits == stop_at:
            test.send("everything is written, nothing is committed")
            test.recv()

    def items() -> Iterator[tuple[str, Profile]]:
        for i in range(1_000_000):
            yield f"u{i:05d}", random_profile(i, n=20)

    with ProfileStore(url) as store, at_commit(stop):
        test.send("loading")
        store.put_many(items())


def create_store(test: Connection, url: str) -> None:
    """Create a store when the test sends a message."""
    test.send("ready")
    test.recv()
    with ProfileStore(url) as store:
        store.put("there", random_profile())
    test.send("created")
