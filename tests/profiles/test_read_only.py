"""Stores that a process may only read: reads work, and writes name the store."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from profiles.samples import random_profile
from profiles.stores import raw, some
from sqlalchemy import text

from lightning_pelt.profiles import _schema
from lightning_pelt.profiles.serving.loading import open_store
from lightning_pelt.profiles.store import ProfileStore

NOBODY = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can enter, which pytest's are not."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        Path(name).chmod(0o755)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Take the rights of root away, to which no file is read-only."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if user == 0:
            os.seteuid(user)


def writes(store: ProfileStore, export: Path) -> list[Callable[[], object]]:
    return [
        lambda: store.put("a", random_profile(n=20)),
        lambda: store.put_many(some(2).items()),
        lambda: store.delete("u0000"),
        lambda: store.import_shards(export),
    ]


@pytest.mark.parametrize("mode", [0o555, 0o777])
def test_a_read_only_file_is_read_and_writes_name_it(folder: Path, mode: int) -> None:
    """In a folder where SQLite cannot create its log, and in one where it can."""
    path = folder / "profiles.db"
    with ProfileStore(path) as store:
        store.put_many(some(5).items())
        store.put("u0000", random_profile(9, n=20))
        export = store.export(folder / "export")
    path.chmod(0o444)
    folder.chmod(mode)
    with unprivileged(), open_store(str(path)) as store:
        assert dict(store.iterate()) == {**some(5), "u0000": random_profile(9, n=20)}
        assert (len(store), store.versions("u0000")) == (5, [1, 2])
        assert store.verify() == []
        for write in writes(store, export):
            with pytest.raises(PermissionError, match=r"profiles\.db is read-only for this"):
                write()
    assert sorted(one.name for one in folder.iterdir()) == ["export", "profiles.db"]


def test_a_reader_without_rights_sees_what_a_writer_has_just_put(folder: Path) -> None:
    path = folder / "profiles.db"
    with ProfileStore(path) as writer:
        writer.put_many(some(3).items())
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0o644)
        with unprivileged(), ProfileStore(path) as reader:
            assert reader.get_many(some(3)) == some(3)
        writer.put("u0000", random_profile(7, n=20))
        with unprivileged(), ProfileStore(path) as reader:
            assert reader.get("u0000") == random_profile(7, n=20)
            os.seteuid(os.getuid())
            writer.put("u0001", random_profile(8, n=20))
            assert reader.get("u0001") == random_profile(8, n=20)


def test_a_writer_that_waits_too_long_names_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_schema, "BUSY_SECONDS", 0)
    path = tmp_path / "profiles.db"
    with ProfileStore(path) as store:
        store.put("a", random_profile())
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TimeoutError, match=r"profiles\.db is in use by another process"):
            store.put("a", random_profile(1))
        assert store.get("a") == random_profile()
        other.close()
        assert store.put("a", random_profile(1)) == 2


def test_a_server_that_may_only_be_read(postgres: Callable[[], str]) -> None:
    url = postgres()
    with ProfileStore(url) as store:
        store.put_many(some(3).items())
    with ProfileStore(f"{url}%20-cdefault_transaction_read_only%3Don") as store:
        assert store.get_many(some(3)) == some(3)
        for write in (
            lambda: store.put("u0000", random_profile(n=20)),
            lambda: store.delete("u0001"),
        ):
            with pytest.raises(PermissionError, match=r"postgresql://.* is read-only for this"):
                write()


def test_a_server_without_a_table_is_damaged(postgres: Callable[[], str]) -> None:
    url = postgres()
    with ProfileStore(url) as store:
        store.put_many(some(3).items())
    with raw(url) as connection:
        connection.execute(text("DROP TABLE xpeft_history"))
    with pytest.raises(ValueError, match=r"postgresql://.* is damaged .*xpeft_history"):
        ProfileStore(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:secret@host:port/db",
        "postgresql://ann:sec@ret@host:x/db",
        "sqlite://ann:secret@/",
        "mysql://ann:secret@host/db?password=secret",
    ],
)
def test_a_url_that_cannot_be_used_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        ProfileStore(url)
    assert "secret" not in str(caught.value) and "ret@" not in str(caught.value)
