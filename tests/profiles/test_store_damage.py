"""Damaged stores: every damage is found and reported, and nothing else is lost."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from profiles.samples import random_profile
from profiles.stores import raw, some
from sqlalchemy import text

from lightning_pelt.profiles.profile import Profile
from lightning_pelt.profiles.store import (
    DamagedProfile,
    DamagedStore,
    ProfileStore,
    UnknownProfile,
)

DAMAGES = {
    "masks": "UPDATE xpeft_profiles SET masks = :masks WHERE id = 'u0001'",
    "norm": "UPDATE xpeft_profiles SET norm = NULL WHERE id = 'u0001'",
    "head": "UPDATE xpeft_profiles SET head = norm WHERE id = 'u0001'",
    "version": "UPDATE xpeft_profiles SET version = 2 WHERE id = 'u0001'",
    "checksum": "UPDATE xpeft_profiles SET checksum = checksum # 1 WHERE id = 'u0001'",
}


@pytest.mark.parametrize("part", DAMAGES)
def test_a_damaged_row_raises_with_its_id_and_other_rows_can_be_read(
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
        with pytest.raises(DamagedProfile, match="'u0001': its checksum does not match") as caught:
            ask()
        assert list(caught.value.reasons) == ["u0001"]
    others = {id: profile for id, profile in given.items() if id != "u0001"}
    assert store.get_many(others) == others
    assert [id for id, _ in store.verify()] == ["u0001"]
    store.put("u0001", given["u0001"])
    assert store.get_many(given) == given
    assert [id for id, _ in store.verify()] == ["u0001"]  # the earlier version
    store.delete("u0001")
    assert store.verify() == []


def test_swapped_rows_are_both_found(url: str, store: ProfileStore) -> None:
    store.put_many(some(3).items())
    with raw(url) as connection:
        for old, new in (("u0000", "x"), ("u0001", "u0000"), ("x", "u0001")):
            connection.execute(text(f"UPDATE xpeft_profiles SET id='{new}' WHERE id='{old}'"))
    assert [id for id, _ in store.verify()] == ["u0000", "u0001"]
    with pytest.raises(DamagedProfile, match=r"'u0000'.*'u0001'.*swapped"):
        store.get_many(["u0001", "u0002", "u0000"])
    assert store.get("u0002") == some(3)["u0002"]


def test_a_damaged_earlier_version_does_not_hide_the_others(url: str, store: ProfileStore) -> None:
    store.put_many([("a", random_profile(seed)) for seed in range(3)])
    with raw(url) as connection:
        connection.execute(text("UPDATE xpeft_history SET version = 7 WHERE version = 2"))
    assert store.get("a", version=1) == random_profile(0)
    assert store.get("a") == random_profile(2)
    for version in (2, 7):
        with pytest.raises(DamagedProfile, match="'a'"):
            store.get("a", version=version)
    assert [(id, why[:10]) for id, why in store.verify()] == [("a", "version 7:")]


@pytest.mark.slow
def test_any_flipped_bit_of_a_file_is_found_or_changes_nothing(tmp_path: Path) -> None:
    profiles = {f"u{i:04d}": random_profile(i, blocks=12) for i in range(100)}
    with ProfileStore(tmp_path / "whole.db") as store:
        store.put_many(profiles.items())
        store.put("u0000", profiles["u0000"])
    whole = (tmp_path / "whole.db").read_bytes()
    draw = np.random.default_rng(0)
    found = 0
    for offset in draw.integers(len(whole), size=80).tolist():
        changed = bytearray(whole)
        changed[offset] ^= 1 << int(draw.integers(8))
        (tmp_path / "flipped.db").write_bytes(changed)
        found += _damage_is_found(tmp_path / "flipped.db", profiles)
    assert found > 30  # the others are in unused parts of pages


def _damage_is_found(path: Path, profiles: dict[str, Profile]) -> bool:
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
            errors = store.verify()
            assert errors or not silent
            return bool(errors)
    except ValueError:  # on opening: not a database, another format, or no such table
        return True


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.5, 0.95, 0.9999])
def test_a_truncated_file_raises_with_the_remedy(tmp_path: Path, kept: float) -> None:
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


def test_a_damaged_page_hides_only_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "profiles.db"
    profiles = {f"u{i:04d}": random_profile(i, blocks=12) for i in range(300)}
    with ProfileStore(path) as store:
        store.put_many(profiles.items())
    data = bytearray(path.read_bytes())
    [page] = {data.find(profiles["u0150"]._packed()[16:]) // 4096}
    data[4096 * page : 4096 * page + 200] = b"\xff" * 200  # its header and its index of rows
    path.write_bytes(data)
    with ProfileStore(path) as store:
        with pytest.raises(DamagedProfile, match="'u0150': its page of the file is damaged"):
            store.get("u0150")
        with pytest.raises(DamagedProfile) as caught:
            store.get_many(profiles)
        lost = caught.value.reasons
        assert "u0150" in lost and len(lost) < 15
        kept = {id: profile for id, profile in profiles.items() if id not in lost}
        assert store.get_many(kept) == kept
        reported = [id for id, _ in store.verify()]
        assert {*lost, ""} == set(reported)


def test_a_file_that_is_not_a_store_raises_and_is_not_changed(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("found", ["1", "3"])
def test_a_store_of_another_format_raises(url: str, found: str) -> None:
    ProfileStore(url).close()
    with raw(url) as connection:
        connection.execute(text(f"UPDATE xpeft_store SET value = '{found}' WHERE key = 'format'"))
    with pytest.raises(ValueError, match=f"format {found}, and this version reads 2: export it"):
        ProfileStore(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://host/db", "unknown kind of store 'mysql'"),
        ("postgresq://host/db", "did you mean 'postgresql'"),
        ("sqlite://", "has no path"),
        ("sqlite:///:memory:", "has no path"),
    ],
)
def test_another_kind_of_database_raises(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProfileStore(url)


def test_the_message_about_an_unreachable_server_omits_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ConnectionError, match="cannot be reached") as caught:
        ProfileStore(f"postgresql://me:secret@/db?host={tmp_path}")
    assert "secret" not in str(caught.value)


def test_a_path_a_url_and_a_string_open_the_same_file(tmp_path: Path) -> None:
    with ProfileStore(tmp_path / "made" / "profiles.db") as store:
        store.put("a", random_profile())
    for same in (str(tmp_path / "made/profiles.db"), f"sqlite:///{tmp_path}/made/profiles.db"):
        with ProfileStore(same) as store:
            assert "a" in store
    with ProfileStore("made/profiles.db") as store:  # the working folder of tests is tmp_path
        assert "a" in store
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["profiles.db"]
