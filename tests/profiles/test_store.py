"""The store on SQLite and on a real PostgreSQL: what it keeps, refuses, and survives."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from profiles.samples import BANK, OTHER_BANK, random_profile
from safetensors.numpy import load_file, save_file

pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed: extra `profiles`")
from sqlalchemy import Engine, create_engine, event, text

from lightning_pelt.benchmark.store import main as benchmark
from lightning_pelt.profiles import store as store_module
from lightning_pelt.profiles.profile import Profile
from lightning_pelt.profiles.store import (
    DamagedProfile,
    DamagedStore,
    ProfileStore,
    UnknownProfile,
)

MIXED: dict[str, dict[str, Any]] = {
    "hard": {},
    "soft": {"soft": True},
    "wide": {"n": 150},
    "one adapter": {"n": 1},
    "norm": {"norm": True},
    "head": {"head": True},
    "both, soft": {"soft": True, "norm": True, "head": True, "blocks": 2},
}


@pytest.fixture
def store(url: str) -> Iterator[ProfileStore]:
    with ProfileStore(url) as store:
        yield store


def some(count: int, first: int = 0) -> dict[str, Profile]:
    return {f"u{i:04d}": random_profile(i, n=20) for i in range(first, first + count)}


@contextmanager
def raw(url: str) -> Iterator[Any]:
    """A connection past the store, with all that is done on it committed."""
    place = (
        url.replace("postgresql:", "postgresql+psycopg:") if "://" in url else f"sqlite:///{url}"
    )
    engine = create_engine(place)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@contextmanager
def at_commit(act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` when a transaction has written all and not committed yet."""

    def listener(_: object) -> None:
        act()

    event.listen(Engine, "commit", listener)
    try:
        yield
    finally:
        event.remove(Engine, "commit", listener)


def python(script: str, *args: str) -> subprocess.Popen[str]:
    """A second process, which finds the library and the tests' helpers as this one does."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


# Keeping and reading


@pytest.mark.parametrize("kind", MIXED)
def test_what_is_put_comes_back_in_all_its_parts(store: ProfileStore, kind: str) -> None:
    profile = random_profile(**MIXED[kind])
    assert store.put(kind, profile) == 1
    assert store.get(kind) == profile
    assert store.bank == BANK


def test_profiles_of_all_kinds_are_read_together_in_the_order_asked(store: ProfileStore) -> None:
    profiles = {kind: random_profile(i, **given) for i, (kind, given) in enumerate(MIXED.items())}
    assert store.put_many(profiles.items()) == len(profiles)
    asked = [*reversed(profiles), "hard"]
    found = store.get_many(asked)
    assert list(found) == list(reversed(profiles))
    assert found == profiles
    assert store.get_many([]) == {}


def test_a_read_profile_shares_no_memory_with_others(store: ProfileStore) -> None:
    store.put_many(some(3).items())
    found = list(store.get_many(some(3)).values())
    found[0].masks[:] = False
    assert found[1] == some(3)["u0001"]
    assert all(one.masks.base is None for one in found)


def test_many_more_than_a_query_and_a_transaction_hold(
    store: ProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "TRANSACTION", 700)
    profiles = some(1500)
    assert store.put_many(iter(profiles.items())) == 1500
    assert len(store) == 1500
    assert store.get_many(profiles) == profiles
    assert list(store.iterate(batch=400)) == list(profiles.items())


def test_large_profiles_make_small_transactions(
    store: ProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    put = store._put
    monkeypatch.setattr(store, "_put", lambda items: lengths.append(len(items)) or put(items))
    monkeypatch.setattr(store_module, "TRANSACTION_BYTES", 2 * 3 * 2 * 20 + 1)
    store.put_many(some(7).items())
    assert lengths == [3, 3, 1]  # of 120 bytes of masks: the third is the first to exceed 241


@pytest.mark.parametrize("id", ["a", "x" * 200, "Ünïcode 🙂", "with 'quotes' \"and\" ; --", "%s ?"])
def test_ids_are_any_text(store: ProfileStore, id: str) -> None:
    store.put(id, random_profile())
    assert (id in store, list(store.ids())) == (True, [id])
    assert store.get(id) == random_profile()


@pytest.mark.parametrize(
    ("id", "message"),
    [
        ("", "0 characters, expected 1 to 200"),
        ("x" * 201, "201 characters, expected 1 to 200"),
        ("a\0b", "holds a character"),
        ("a\udcffb", "holds a character"),
        (7, "is a int, expected text"),
    ],
)
def test_what_is_no_id_is_refused_and_unknown(store: ProfileStore, id: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store.put(id, random_profile())
    assert id not in store
    for ask in (store.get, store.versions, store.delete):
        with pytest.raises(UnknownProfile):
            ask(id)
    assert (len(store), store.bank) == (0, None)


def test_unknown_ids_are_all_named_in_words(store: ProfileStore) -> None:
    store.put("known", random_profile())
    with pytest.raises(UnknownProfile) as caught:
        store.get_many(["ghost", "known", "spirit"])
    assert caught.value.ids == ("ghost", "spirit")
    assert "has no profile 'ghost', 'spirit'" in str(caught.value)
    assert not str(caught.value).startswith(('"', "'"))
    with pytest.raises(KeyError, match="and 2 more"):
        store.get_many(f"ghost{i}" for i in range(12))


def test_ids_come_in_the_order_of_code_points(store: ProfileStore) -> None:
    ids = ["b", "a", "B", "é", "a b", "z", "10", "9", "🙂", "\uff41"]
    store.put_many((id, random_profile()) for id in ids)
    assert list(store.ids()) == sorted(ids)
    assert [id for id, _ in store.iterate(batch=3)] == sorted(ids)


def test_a_store_is_as_it_was_when_opened_again(url: str) -> None:
    with ProfileStore(url) as first:
        first.put_many(some(5).items())
        first.put("u0000", random_profile(99))
    with ProfileStore(url) as second:
        assert (second.bank, len(second), second.versions("u0000")) == (BANK, 5, [1, 2])
        assert second.get_many(some(5)) == {**some(5), "u0000": random_profile(99)}
        assert second.verify() == []


def test_an_empty_store_has_nothing(store: ProfileStore) -> None:
    assert (len(store), store.bank, "a" in store, list(store.ids())) == (0, None, False, [])
    assert list(store.iterate()) == []
    assert store.verify() == []
    assert store.latest(["a"]) == {}


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_nothing_is_refused(store: ProfileStore, batch: int) -> None:
    with pytest.raises(ValueError, match=f"batch is {batch}"):
        next(store.iterate(batch=batch))


# Versions


def test_every_put_makes_a_version_and_all_can_be_read(store: ProfileStore) -> None:
    assert [store.put("a", random_profile(seed)) for seed in range(4)] == [1, 2, 3, 4]
    assert store.versions("a") == [1, 2, 3, 4]
    assert store.get("a") == random_profile(3)
    for seed in range(4):
        assert store.get("a", version=seed + 1) == random_profile(seed)
    with pytest.raises(UnknownProfile, match=r"no version 7: it has \[1, 2, 3, 4\]"):
        store.get("a", version=7)
    assert (len(store), list(store.ids())) == (1, ["a"])


def test_an_id_that_comes_twice_in_bulk_becomes_two_versions(store: ProfileStore) -> None:
    items = [("a", random_profile(0)), ("b", random_profile(1)), ("a", random_profile(2))]
    assert store.put_many(items) == 3
    assert store.latest(["a", "b", "ghost"]) == {"a": 2, "b": 1}
    assert store.get("a", version=1) == random_profile(0)
    assert store.get("a") == random_profile(2)


def test_a_deleted_profile_is_gone_with_its_versions_and_its_numbers_are_not_given_again(
    store: ProfileStore,
) -> None:
    store.put_many([("a", random_profile(0)), ("b", random_profile(1)), ("a", random_profile(2))])
    store.delete("a")
    assert ("a" in store, "b" in store, len(store)) == (False, True, 1)
    for ask in (store.get, store.versions, store.delete):
        with pytest.raises(UnknownProfile):
            ask("a")
    with pytest.raises(UnknownProfile):
        store.get("a", version=1)
    assert store.put("a", random_profile(3)) == 3
    assert store.versions("a") == [3]
    store.delete("a")
    assert store.put("a", random_profile(4)) == 4
    assert store.get("b") == random_profile(1)


# Banks


def test_a_profile_of_another_bank_is_refused_with_both_digests(store: ProfileStore) -> None:
    store.put("a", random_profile())
    for put in (
        lambda: store.put("b", random_profile(bank=OTHER_BANK)),
        lambda: store.put_many([("c", random_profile()), ("d", random_profile(bank=OTHER_BANK))]),
    ):
        with pytest.raises(ValueError) as caught:
            put()
        assert BANK in str(caught.value) and OTHER_BANK in str(caught.value)
    assert list(store.ids()) == ["a"]


def test_a_first_write_that_fails_leaves_the_bank_open(store: ProfileStore) -> None:
    with pytest.raises(ValueError, match="chooses from the bank"):
        store.put_many([("a", random_profile()), ("b", random_profile(bank=OTHER_BANK))])
    assert (store.bank, len(store)) == (None, 0)
    store.put("b", random_profile(bank=OTHER_BANK))
    assert store.bank == OTHER_BANK


# Damage


DAMAGES = {
    "masks": "UPDATE xpeft_profiles SET masks = :masks WHERE id = 'u0001'",
    "norm": "UPDATE xpeft_profiles SET norm = NULL WHERE id = 'u0001'",
    "head": "UPDATE xpeft_profiles SET head = norm WHERE id = 'u0001'",
    "version": "UPDATE xpeft_profiles SET version = 2 WHERE id = 'u0001'",
    "checksum": "UPDATE xpeft_profiles SET checksum = checksum # 1 WHERE id = 'u0001'",
}


@pytest.mark.parametrize("part", DAMAGES)
def test_a_damaged_row_is_named_and_no_other_is_lost(
    url: str, store: ProfileStore, part: str
) -> None:
    given = {f"u{i:04d}": random_profile(i, norm=True) for i in range(4)}
    store.put_many(given.items())
    statement = DAMAGES[part]
    if "://" not in url:
        statement = statement.replace("checksum # 1", "checksum + 1")
    with raw(url) as connection:
        found = connection.execute(text("SELECT masks FROM xpeft_profiles WHERE id = 'u0001'"))
        masks = bytearray(found.scalar())
        masks[20] ^= 4
        values = {"masks": bytes(masks)} if part == "masks" else {}
        connection.execute(text(statement), values)
    for ask in (
        lambda: store.get("u0001"),
        lambda: store.get("u0001", version=1),
        lambda: store.get_many(given),
        lambda: list(store.iterate()),
    ):
        with pytest.raises(DamagedProfile, match="'u0001': its checksum does not hold") as caught:
            ask()
        assert list(caught.value.reasons) == ["u0001"]
    others = {id: profile for id, profile in given.items() if id != "u0001"}
    assert store.get_many(others) == others
    assert [id for id, _ in store.verify()] == ["u0001"]
    store.put("u0001", given["u0001"])
    assert store.get_many(given) == given
    assert [id for id, _ in store.verify()] == ["u0001"]  # its older version
    store.delete("u0001")
    assert store.verify() == []


def test_rows_that_were_swapped_are_both_found(url: str, store: ProfileStore) -> None:
    store.put_many(some(3).items())
    with raw(url) as connection:
        for old, new in (("u0000", "x"), ("u0001", "u0000"), ("x", "u0001")):
            connection.execute(text(f"UPDATE xpeft_profiles SET id='{new}' WHERE id='{old}'"))
    assert [id for id, _ in store.verify()] == ["u0000", "u0001"]
    with pytest.raises(DamagedProfile, match=r"'u0000'.*'u0001'.*swapped"):
        store.get_many(["u0001", "u0002", "u0000"])
    assert store.get("u0002") == some(3)["u0002"]


def test_an_older_version_that_is_damaged_does_not_hide_the_others(
    url: str, store: ProfileStore
) -> None:
    store.put_many([("a", random_profile(seed)) for seed in range(3)])
    with raw(url) as connection:
        connection.execute(text("UPDATE xpeft_history SET version = 7 WHERE version = 2"))
    assert store.get("a", version=1) == random_profile(0)
    assert store.get("a") == random_profile(2)
    for version in (2, 7):
        with pytest.raises(DamagedProfile, match="'a'"):
            store.get("a", version=version)
    assert [(id, why[:10]) for id, why in store.verify()] == [("a", "version 7:")]


def test_any_flipped_bit_of_a_file_is_found_or_harmless(tmp_path: Path) -> None:
    profiles = {f"u{i:04d}": random_profile(i, blocks=12) for i in range(100)}
    with ProfileStore(tmp_path / "whole.db") as store:
        store.put_many(profiles.items())
        store.put("u0000", profiles["u0000"])
    whole = (tmp_path / "whole.db").read_bytes()
    draw = np.random.default_rng(0)
    found = 0
    for place in draw.integers(len(whole), size=80).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << int(draw.integers(8))
        (tmp_path / "flipped.db").write_bytes(changed)
        found += _reads_right_or_complains(tmp_path / "flipped.db", profiles)
    assert found > 30  # the others hit parts of pages that nothing uses


def _reads_right_or_complains(path: Path, profiles: dict[str, Profile]) -> bool:
    try:
        with ProfileStore(path) as store:
            silent = []
            for id, profile in profiles.items():
                try:
                    assert store.get(id) == profile
                except (DamagedProfile, DamagedStore):
                    pass
                except UnknownProfile:
                    silent.append(id)
            complaints = store.verify()
            assert complaints or not silent
            return bool(complaints)
    except ValueError:  # at opening: no database, another format, no table of ours
        return True


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.5, 0.95, 0.9999])
def test_a_truncated_file_is_refused_with_the_remedy(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "profiles.db"
    with ProfileStore(path) as store:
        store.put_many(some(300).items())
        store.export(tmp_path / "export")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"profiles\.db.*truncated.*import_shards"):
        ProfileStore(path)
    with ProfileStore(tmp_path / "new.db") as new:
        assert new.import_shards(tmp_path / "export") == 300
        assert new.get_many(some(300)) == some(300)


def test_a_broken_page_hides_only_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "profiles.db"
    profiles = {f"u{i:04d}": random_profile(i) for i in range(300)}
    with ProfileStore(path) as store:
        store.put_many(profiles.items())
    data = bytearray(path.read_bytes())
    [page] = {data.find(profiles["u0150"]._packed()[16:]) // 4096}
    data[4096 * page : 4096 * page + 200] = b"\xff" * 200  # its header and its directory of rows
    path.write_bytes(data)
    with ProfileStore(path) as store:
        with pytest.raises(DamagedProfile, match=r"u0150.*malformed"):
            store.get("u0150")
        with pytest.raises(DamagedProfile) as caught:
            store.get_many(profiles)
        lost = caught.value.reasons
        assert "u0150" in lost and len(lost) < 30
        kept = {id: profile for id, profile in profiles.items() if id not in lost}
        assert store.get_many(kept) == kept
        reported = [id for id, _ in store.verify()]
        assert {*lost, ""} == set(reported)


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database " * 100)
    with pytest.raises(ValueError, match=r"notes\.txt \(1500 bytes\) is not a profile store"):
        ProfileStore(path)
    assert path.read_text() == "not a database " * 100
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE trials (number INTEGER)")
    connection.close()
    with pytest.raises(ValueError, match=r"other\.db is a database, but not a profile store"):
        ProfileStore(other)
    with sqlite3.connect(other) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("trials",)]
    connection.close()


def test_a_store_of_a_later_format_is_refused(url: str) -> None:
    ProfileStore(url).close()
    with raw(url) as connection:
        connection.execute(text("UPDATE xpeft_store SET value = '2' WHERE key = 'format'"))
    with pytest.raises(ValueError, match="format 2, and this version reads 1"):
        ProfileStore(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://host/db", "unknown kind of store 'mysql'"),
        ("postgresq://host/db", "did you mean 'postgresql'"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
    ],
)
def test_another_kind_of_database_is_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProfileStore(url)


def test_a_server_that_does_not_answer_is_said_so_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ConnectionError, match="cannot be reached") as caught:
        ProfileStore(f"postgresql://me:secret@/db?host={tmp_path}")
    assert "secret" not in str(caught.value)


def test_a_path_a_url_and_a_string_name_the_same_file(tmp_path: Path) -> None:
    with ProfileStore(tmp_path / "made" / "profiles.db") as store:
        store.put("a", random_profile())
    for same in (str(tmp_path / "made/profiles.db"), f"sqlite:///{tmp_path}/made/profiles.db"):
        with ProfileStore(same) as store:
            assert "a" in store
    with ProfileStore("made/profiles.db") as store:  # the working folder of tests is tmp_path
        assert "a" in store
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["profiles.db"]


# Many at once


def test_iterating_goes_on_while_others_write(url: str, store: ProfileStore) -> None:
    store.put_many(some(10).items())
    seen = []
    with ProfileStore(url) as writer:
        for id, profile in store.iterate(batch=2):
            seen.append(id)
            assert profile == some(10).get(id, random_profile(77))
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
    for i in range(10_000):
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
    assert _check_after_a_crash(url, at_least=300) < 10_000


def test_two_processes_may_make_the_same_store_at_once(url: str) -> None:
    script = """
import sys
from profiles.samples import random_profile
from lightning_pelt.profiles.store import ProfileStore
print("ready", flush=True)
sys.stdin.readline()
with ProfileStore(sys.argv[1]) as store:
    store.put(sys.argv[2], random_profile())
"""
    makers = [python(script, url, name) for name in ("a", "b", "c")]
    for maker in makers:
        assert maker.stdout is not None and maker.stdout.readline() == "ready\n"
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("go\n")
        maker.stdin.flush()
    for maker in makers:
        maker.communicate(timeout=60)
        assert maker.returncode == 0
    with ProfileStore(url) as store:
        assert list(store.ids()) == ["a", "b", "c"]


# Shards


def test_shards_bring_everything_into_another_store(store: ProfileStore, tmp_path: Path) -> None:
    profiles = {kind: random_profile(i, **given) for i, (kind, given) in enumerate(MIXED.items())}
    profiles |= some(50)
    store.put_many(profiles.items())
    store.put("hard", random_profile(99))
    folder = store.export(tmp_path / "export", rows_per_shard=20)
    with ProfileStore(tmp_path / "copy.db") as copy:
        assert copy.import_shards(folder) == len(profiles)
        assert copy.bank == BANK
        assert dict(copy.iterate()) == {**profiles, "hard": random_profile(99)}
        assert copy.latest(["hard", "soft"]) == {"hard": 2, "soft": 1}
        assert copy.verify() == []
        assert copy.import_shards(folder) == 0  # again: it has them
        assert copy.versions("hard") == [2]
        assert copy.put("hard", random_profile(3)) == 3


def test_a_store_keeps_what_is_newer_than_the_shards(store: ProfileStore, tmp_path: Path) -> None:
    store.put_many([("a", random_profile(0)), ("a", random_profile(1)), ("b", random_profile(2))])
    folder = store.export(tmp_path / "export")
    store.put("b", random_profile(3))
    store.delete("a")
    with ProfileStore(tmp_path / "other.db") as other:
        other.put("a", random_profile(4))
        assert other.import_shards(folder) == 2
        assert other.get("a") == random_profile(1)
        assert other.get("a", version=1) == random_profile(4)
    assert store.import_shards(folder) == 1
    assert store.get("a") == random_profile(1)
    assert store.get("b") == random_profile(3)


def test_a_shard_is_what_its_description_says(tmp_path: Path) -> None:
    given = {f"ü{i}": random_profile(i, n=20, norm=i == 1) for i in range(3)}
    with ProfileStore(tmp_path / "profiles.db") as store:
        store.put_many(given.items())
        folder = store.export(tmp_path / "export", rows_per_shard=2)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["bank"], [s["rows"] for s in manifest["shards"]]) == (BANK, [2, 1])
    first = folder / manifest["shards"][0]["file"]
    assert manifest["shards"][0]["sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()
    tensors = load_file(first)
    assert tensors["masks"].dtype == np.uint8 and tensors["masks"].shape == (2, 3, 2, 3)
    bits = np.unpackbits(tensors["masks"], axis=-1, count=20, bitorder="little")
    np.testing.assert_array_equal(bits, [given["ü0"].masks, given["ü1"].masks])
    assert tensors["ids"].tobytes().decode() == "ü0ü1"
    assert tensors["ids.ends"].tolist() == [3, 6]
    assert tensors["versions"].tolist() == [1, 1]
    assert tensors["norms"].tobytes() == given["ü1"].norm_bytes()


def _export(tmp_path: Path) -> Path:
    with ProfileStore(tmp_path / "source.db") as store:
        store.put_many(some(60).items())
        return store.export(tmp_path / "export", rows_per_shard=25)


def test_a_truncated_shard_is_named_before_anything_is_written(
    store: ProfileStore, tmp_path: Path
) -> None:
    folder = _export(tmp_path)
    last = sorted(folder.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{last.name} is truncated or was changed"):
        store.import_shards(folder)
    assert (len(store), store.bank) == (0, None)
    last.unlink()
    with pytest.raises(ValueError, match=f"{last.name} is missing"):
        store.import_shards(folder)
    assert (len(store), store.bank) == (0, None)


def test_shards_of_another_bank_are_refused_with_both_digests(
    store: ProfileStore, tmp_path: Path
) -> None:
    store.put("a", random_profile(bank=OTHER_BANK))
    with pytest.raises(ValueError) as caught:
        store.import_shards(_export(tmp_path))
    assert BANK in str(caught.value) and OTHER_BANK in str(caught.value)
    assert list(store.ids()) == ["a"]


def _resealed(folder: Path, shard: Path) -> None:
    """Let the manifest have the hash of a shard that was changed."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    [entry] = [entry for entry in manifest["shards"] if entry["file"] == shard.name]
    entry["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))


def test_foreign_shards_and_manifests_are_refused(store: ProfileStore, tmp_path: Path) -> None:
    folder = _export(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json in"):
        store.import_shards(tmp_path)
    shard = folder / "profiles-00000.safetensors"
    tensors = load_file(shard)
    save_file({"weight": np.zeros(3, np.float32)}, shard)
    _resealed(folder, shard)
    with pytest.raises(ValueError, match=r"profiles-00000\.safetensors is not a shard"):
        store.import_shards(folder)
    tensors["masks"][7, 0, 0, 0] ^= 1
    save_file(tensors, shard)
    _resealed(folder, shard)
    with pytest.raises(DamagedProfile, match="'u0007': block 0, side A chooses"):
        store.import_shards(folder)
    assert len(store) == 0
    for foreign in ("[1, 2]", "{", '{"format": "1"}'):
        (folder / "manifest.json").write_text(foreign)
        with pytest.raises(ValueError, match="not a manifest"):
            store.import_shards(folder)
    (folder / "manifest.json").write_text('{"format": "9", "bank": "", "shards": []}')
    with pytest.raises(ValueError, match="format 9, and this version reads 1"):
        store.import_shards(folder)


def test_an_export_does_not_take_the_place_of_another(store: ProfileStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no profiles to export"):
        store.export(tmp_path / "export")
    store.put("a", random_profile())
    with pytest.raises(ValueError, match="rows_per_shard is 0"):
        store.export(tmp_path / "export", rows_per_shard=0)
    store.export(tmp_path / "export")
    with pytest.raises(FileExistsError, match="choose another folder"):
        store.export(tmp_path / "export")


def test_an_export_of_a_damaged_store_is_no_export(
    url: str, store: ProfileStore, tmp_path: Path
) -> None:
    store.put_many(some(5).items())
    with raw(url) as connection:
        connection.execute(text("UPDATE xpeft_profiles SET version = 9 WHERE id = 'u0003'"))
    with pytest.raises(DamagedProfile, match="u0003"):
        store.export(tmp_path / "export", rows_per_shard=2)
    assert not (tmp_path / "export" / "manifest.json").exists()
    store.delete("u0003")
    store.export(tmp_path / "export", rows_per_shard=2)
    shutil.rmtree(tmp_path / "export")


def test_large_rows_close_a_shard_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_pelt.profiles import _shards

    monkeypatch.setattr(_shards, "SHARD_BYTES", 100)  # three rows of 16 + 18 bytes
    with ProfileStore(tmp_path / "profiles.db") as store:
        store.put_many(some(7).items())
        folder = store.export(tmp_path / "export")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [shard["rows"] for shard in manifest["shards"]] == [3, 3, 1]


# What it takes


def test_a_shrunk_benchmark_prints_what_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "figures.json"
    shape = "--rows 500 --reads 128 --adapters 20 --chosen 7 --blocks 2"
    figures = benchmark([*shape.split(), "--folder", str(tmp_path / "b"), "--json", str(report)])
    assert json.loads(report.read_text()) == figures
    assert figures["bytes_of_masks"] == {"masks": 12, "norm": 0, "head": 0}
    assert f"{figures['reads_per_second']:,.0f} /s at random" in capsys.readouterr().out
    assert list((tmp_path / "b").iterdir()) == []


def test_a_row_takes_little_more_than_its_masks(tmp_path: Path) -> None:
    masks = random_profile(n=100, blocks=12)
    with ProfileStore(tmp_path / "profiles.db") as store:
        store.put_many((f"reader-{i:07d}", masks) for i in range(5000))
    assert (tmp_path / "profiles.db").stat().st_size / 5000 < 425  # 450 MB at a million
    assert dataclasses.replace(masks).bytes_by_part()["masks"] == 312
