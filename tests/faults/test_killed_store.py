"""A store whose writers and readers are killed has every committed version bit by bit."""

from __future__ import annotations

import random
import signal
from collections import defaultdict
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from faults.store_writer import put_until_killed, read_until_killed
from processes import TIMEOUT, receive, second_process
from profiles.samples import random_profile

from lightning_pelt.profiles.store import ProfileStore

Versions = dict[str, list[int]]  # seeds of the versions of each profile


def kill_a_writer(url: str, seed: int) -> tuple[list[dict[str, int]], dict[str, int] | None]:
    """Kill a writer after some transactions; returns them, and one that may be committed."""
    draw = random.Random(seed)
    committed: list[dict[str, int]] = []
    begun = None
    with second_process(put_until_killed, url, seed) as (writer, messages):
        for _ in range(draw.randint(1, 30)):  # between two messages, or right after either
            begun = note(receive(messages), committed)
        writer.kill()
        writer.join(TIMEOUT)
        assert writer.exitcode == -signal.SIGKILL
        for message in rest_of(messages):
            begun = note(message, committed)
    return committed, begun


def note(
    message: tuple[str, dict[str, int]], committed: list[dict[str, int]]
) -> dict[str, int] | None:
    what, seeds = message
    if what == "begun":
        return seeds
    committed.append(seeds)
    return None


def rest_of(messages: Connection) -> list[tuple[str, dict[str, int]]]:
    found = []
    try:
        while messages.poll():
            found.append(messages.recv())
    except (EOFError, OSError):  # the last message is incomplete
        pass
    return found


def was_committed(store: ProfileStore, seeds: dict[str, int]) -> bool:
    """Whether the latest version of a profile is that of a transaction."""
    id, seed = next(iter(seeds.items()))
    return id in store and store.get(id) == random_profile(seed, n=20)


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.nightly)])
@pytest.mark.slow
def test_killed_writers(tmp_path: Path, kills: int) -> None:
    url = str(tmp_path / "profiles.db")
    expected: Versions = defaultdict(list)
    for seed in range(1, kills + 1):
        committed, begun = kill_a_writer(url, seed)
        for seeds in committed:
            add(expected, seeds)
        with ProfileStore(url) as store:
            if begun and was_committed(store, begun):
                add(expected, begun)
            assert_same(store, expected)


def add(expected: Versions, seeds: dict[str, int]) -> None:
    for id, one in seeds.items():
        expected[id].append(one)


def assert_same(store: ProfileStore, expected: Versions) -> None:
    """Every version of every profile is the committed one, and there are no others."""
    assert store.verify() == []
    given = {id: seeds for id, seeds in expected.items() if seeds}
    found = {id: store.versions(id) for id in store.ids()}
    assert found == {id: list(range(1, len(seeds) + 1)) for id, seeds in given.items()}
    for id, seeds in given.items():
        for version, seed in enumerate(seeds, 1):
            assert store.get(id, version) == random_profile(seed, n=20)


@pytest.mark.slow
def test_killed_readers(tmp_path: Path) -> None:
    """A server that is killed in a request leaves the store as it was, for others to write."""
    url = str(tmp_path / "profiles.db")
    with ProfileStore(url) as store:
        for turn in range(4):
            with second_process(read_until_killed, url) as (reader, messages):
                assert receive(messages) == turn
                store.put(f"u{turn}", random_profile(turn))
                reader.kill()
                reader.join(TIMEOUT)
            expected = {f"u{one}": random_profile(one) for one in range(turn + 1)}
            assert dict(store.iterate()) == expected
            with ProfileStore(url) as again:
                assert again.verify() == []
                assert dict(again.iterate()) == expected
