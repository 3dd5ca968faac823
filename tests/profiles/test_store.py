"""The store on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from profile_store import main as benchmark
from profiles.samples import BANK, OTHER_BANK, random_profile
from profiles.stores import MIXED, some

from lightning_pelt.profiles import _writing
from lightning_pelt.profiles._engine import Database, chunks
from lightning_pelt.profiles._row_codec import encode
from lightning_pelt.profiles.store import DamagedProfile, ProfileStore, UnknownProfile


@pytest.mark.parametrize("kind", MIXED)
def test_a_stored_profile_has_all_its_parts(store: ProfileStore, kind: str) -> None:
    profile = random_profile(**MIXED[kind])
    assert store.put(kind, profile) == 1
    assert store.get(kind) == profile
    assert store.bank == BANK


def test_profiles_of_all_kinds_are_read_together_in_the_given_order(store: ProfileStore) -> None:
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


def test_more_profiles_than_fit_in_a_query_and_a_transaction(
    store: ProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writing, "TRANSACTION", 700)
    profiles = some(1500)
    assert store.put_many(iter(profiles.items())) == 1500
    assert len(store) == 1500
    assert store.get_many(profiles) == profiles
    assert list(store.iterate(batch=400)) == list(profiles.items())


def test_large_profiles_are_put_in_small_transactions(
    store: ProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    put = _writing.put

    def count(database: Any, items: Any) -> Any:
        lengths.append(len(items))
        return put(database, items)

    monkeypatch.setattr(_writing, "put", count)
    monkeypatch.setattr(_writing, "TRANSACTION_BYTES", 2 * 3 * 2 * 20 + 1)
    store.put_many(some(7).items())
    assert lengths == [3, 3, 1]  # with 120 bytes of masks each, the third exceeds 241


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
        ("a\0b", "contains a character"),
        ("a\udcffb", "contains a character"),
        (7, "is a int, expected a string"),
    ],
)
def test_an_invalid_id_raises_and_is_unknown(store: ProfileStore, id: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store.put(id, random_profile())
    assert id not in store
    for ask in (store.get, store.versions, store.delete):
        with pytest.raises(UnknownProfile):
            ask(id)
    assert (len(store), store.bank) == (0, None)


def test_the_message_names_all_unknown_ids(store: ProfileStore) -> None:
    store.put("known", random_profile())
    with pytest.raises(UnknownProfile) as caught:
        store.get_many(["ghost", "known", "spirit"])
    assert caught.value.ids == ("ghost", "spirit")
    assert "has no profile 'ghost', 'spirit'" in str(caught.value)
    assert not str(caught.value).startswith(('"', "'"))
    with pytest.raises(KeyError, match="and 2 more"):
        store.get_many(f"ghost{i}" for i in range(12))


@pytest.mark.parametrize("error", [UnknownProfile("no 'a'", ["a"]), DamagedProfile({"a": "why"})])
def test_errors_can_be_pickled(error: Exception) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), back.args) == (type(error), str(error), error.args)


def test_ids_are_sorted_by_code_points(store: ProfileStore) -> None:
    ids = ["b", "a", "B", "é", "a b", "z", "10", "9", "🙂", "\uff41"]
    store.put_many((id, random_profile()) for id in ids)
    assert list(store.ids()) == sorted(ids)
    assert [id for id, _ in store.iterate(batch=3)] == sorted(ids)


def test_a_reopened_store_is_unchanged(url: str) -> None:
    with ProfileStore(url) as first:
        first.put_many(some(5).items())
        first.put("u0000", random_profile(99))
    with ProfileStore(url) as second:
        assert (second.bank, len(second), second.versions("u0000")) == (BANK, 5, [1, 2])
        assert second.get_many(some(5)) == {**some(5), "u0000": random_profile(99)}
        assert second.verify() == []


def test_an_empty_store(store: ProfileStore) -> None:
    assert (len(store), store.bank, "a" in store, list(store.ids())) == (0, None, False, [])
    assert list(store.iterate()) == []
    assert store.verify() == []
    assert store.latest(["a"]) == {}


@pytest.mark.parametrize("batch", [0, -1])
def test_an_empty_batch_raises(store: ProfileStore, batch: int) -> None:
    with pytest.raises(ValueError, match=f"batch is {batch}"):
        next(store.iterate(batch=batch))


def test_every_put_is_a_version_and_all_can_be_read(store: ProfileStore) -> None:
    assert [store.put("a", random_profile(seed)) for seed in range(4)] == [1, 2, 3, 4]
    assert store.versions("a") == [1, 2, 3, 4]
    assert store.get("a") == random_profile(3)
    for seed in range(4):
        assert store.get("a", version=seed + 1) == random_profile(seed)
    with pytest.raises(UnknownProfile, match=r"no version 7: it has \[1, 2, 3, 4\]"):
        store.get("a", version=7)
    assert (len(store), list(store.ids())) == (1, ["a"])


def test_a_repeated_id_is_stored_as_two_versions(store: ProfileStore) -> None:
    items = [("a", random_profile(0)), ("b", random_profile(1)), ("a", random_profile(2))]
    assert store.put_many(items) == 3
    assert store.latest(["a", "b", "ghost"]) == {"a": 2, "b": 1}
    assert store.get("a", version=1) == random_profile(0)
    assert store.get("a") == random_profile(2)


def test_a_deleted_profile_has_no_versions_and_its_numbers_are_not_used_again(
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
    assert store.put("b", random_profile(5)) == 2, "it exists, and goes on with its numbers"
    assert store.put("new", random_profile(6)) == 4, "which might have been deleted"


def test_all_profiles_are_deleted_or_none(store: ProfileStore) -> None:
    store.put_many((f"u{i}", random_profile(i)) for i in range(600))
    with pytest.raises(UnknownProfile, match=r"no profile 'x', 'y'"):
        store.delete_many(["u1", "x", "u2", "y"])
    assert len(store) == 600
    store.delete_many(f"u{i}" for i in range(599))
    assert list(store.ids()) == ["u599"]


def test_a_deletion_whose_bytes_cannot_be_removed_says_so(
    store: ProfileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(database: Database) -> None:
        raise OSError("the store cannot be written, its disk is full: nothing was changed")

    store.put("a", random_profile())
    monkeypatch.setattr(Database, "erase", full)
    with pytest.raises(OSError, match=r"profiles are deleted, .* its disk is full$"):
        store.delete("a")
    assert "a" not in store


def test_nothing_of_a_deleted_profile_is_left_in_the_files(tmp_path: Path) -> None:
    """Not even where rows have moved, in free pages, or in the log."""
    draw = random.Random(0)
    given = {f"user-{draw.randrange(10**12):012d}": random_profile(i, n=400) for i in range(400)}
    later = {id: random_profile(1000 + i, n=400) for i, id in enumerate(draw.sample([*given], 100))}
    gone = draw.sample([*given], 40)
    with ProfileStore(tmp_path / "profiles.db") as store:
        for items in (given, later):
            for batch in chunks(items.items(), 30):  # transactions that move rows between pages
                store.put_many(batch)
        before = contents(tmp_path)
        store.delete_many(gone)
        after = contents(tmp_path)  # while the store is open
        for id in gone:
            rows = [given[id], *([later[id]] if id in later else [])]
            secrets = [id.encode(), *(encode({id: row})[0].masks for row in rows)]
            assert all(secret in before for secret in secrets)
            assert not any(secret in after for secret in secrets)
        assert len(store) == 360 and store.verify() == []


def contents(folder: Path) -> bytes:
    """All bytes of the files of a folder."""
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_a_profile_of_another_bank_raises_with_both_digests(store: ProfileStore) -> None:
    store.put("a", random_profile())
    for put in (
        lambda: store.put("b", random_profile(bank=OTHER_BANK)),
        lambda: store.put_many([("c", random_profile()), ("d", random_profile(bank=OTHER_BANK))]),
    ):
        with pytest.raises(ValueError) as caught:
            put()
        assert BANK in str(caught.value) and OTHER_BANK in str(caught.value)
    assert list(store.ids()) == ["a"]


def test_a_failed_first_write_does_not_set_the_bank(store: ProfileStore) -> None:
    with pytest.raises(ValueError, match="belongs to the bank"):
        store.put_many([("a", random_profile()), ("b", random_profile(bank=OTHER_BANK))])
    assert (store.bank, len(store)) == (None, 0)
    store.put("b", random_profile(bank=OTHER_BANK))
    assert store.bank == OTHER_BANK


def test_a_small_benchmark_prints_what_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "figures.json"
    shape = "--rows 500 --reads 128 --adapters 20 --chosen 7 --blocks 2"
    figures = benchmark([*shape.split(), "--folder", str(tmp_path / "b"), "--json", str(report)])
    assert json.loads(report.read_text()) == figures
    assert figures["bytes_of_masks"] == {"masks": 12, "norm": 0, "head": 0}
    assert f"{figures['reads_per_second']:,.0f} /s at random" in capsys.readouterr().out
    assert list((tmp_path / "b").iterdir()) == []


def test_a_row_is_little_larger_than_its_masks(tmp_path: Path) -> None:
    profile = random_profile(n=100, blocks=12)
    with ProfileStore(tmp_path / "profiles.db") as store:
        store.put_many((f"reader-{i:07d}", profile) for i in range(5000))
    assert (tmp_path / "profiles.db").stat().st_size / 5000 < 425  # 450 MB at a million
    assert profile.bytes_by_part()["masks"] == 312
