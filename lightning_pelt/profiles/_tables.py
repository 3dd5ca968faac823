"""The tables of a store, and how a file or a server that has them is opened."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DatabaseError, OperationalError

from lightning_pelt.errors import unknown

FORMAT = "1"
BUSY_SECONDS = 30  # that a writer waits for its turn
REMEDY = "import_shards() of an export brings all of its profiles into a new store"
_ADVISORY_LOCK = 0x58504654  # any number, the same for all that create the tables

metadata = MetaData()
# Ordered by code points on every server, as SQLite and Python do it.
_ID = Text().with_variant(Text(collation="C"), "postgresql")


def _row_columns(*, versions_in_key: bool) -> list[Column[Any]]:
    return [
        Column("id", _ID, primary_key=True),
        Column("version", Integer, primary_key=versions_in_key, nullable=False),
        Column("masks", LargeBinary, nullable=False),
        Column("norm", LargeBinary),
        Column("head", LargeBinary),
        Column("checksum", Integer, nullable=False),
    ]


# SQLite keeps `profiles` in the order of insertion, with an index of ids beside it. As a table
# without row ids it would have the order of ids, and pages split by random ids are a third empty.
profiles = Table("xpeft_profiles", metadata, *_row_columns(versions_in_key=False))
history = Table("xpeft_history", metadata, *_row_columns(versions_in_key=True))
# The last version of deleted profiles: a number is never given twice, so caches can rely on it.
retired = Table(
    "xpeft_retired",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("version", Integer, nullable=False),
)
facts = Table(
    "xpeft_store",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)


class DamagedStore(ValueError):
    """A file that is no database, or is one no longer."""


def open_engine(url: str | Path) -> tuple[Engine, str]:
    """A store's database, whose tables exist, and its name for messages.

    Raises:
        ValueError: another kind of database, or a file that is none of ours, damaged or truncated.
        ConnectionError: the server cannot be reached.
    """
    if isinstance(url, Path) or "://" not in url:
        return _open_file(Path(url))
    target = make_url(url)
    kind = target.drivername.split("+")[0]
    if kind == "sqlite":
        if target.database in (None, "", ":memory:"):
            raise ValueError(f"{url!r} names no file: give a path, such as 'profiles.db'")
        return _open_file(Path(str(target.database)))
    if kind in ("postgresql", "postgres"):
        return _open_server(target.set(drivername="postgresql+psycopg"))
    raise unknown("kind of store", kind, ["sqlite", "postgresql"])


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turn what SQLite says of a damaged file into a ``DamagedStore`` with the remedy."""
    try:
        yield
    except DatabaseError as error:
        # Every other complaint of SQLite has a class of its own.
        if type(error.orig) is not sqlite3.DatabaseError:
            raise
        raise DamagedStore(f"{name} is damaged ({error.orig}): {REMEDY}") from error


def _open_file(path: Path) -> tuple[Engine, str]:
    path = path.absolute()
    if not path.exists():
        _create(path)
    _refuse_damaged(path)
    engine = _file_engine(path)
    with explained(str(path)), engine.connect() as connection:
        try:
            _refuse_format(connection, str(path))
        except OperationalError as error:
            raise ValueError(
                f"{path} is a database, but not a profile store: give a path of its own"
            ) from error
    return engine, str(path)


def _file_engine(path: Path) -> Engine:
    url = URL.create("sqlite+pysqlite", database=str(path))
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _configure)
    return engine


def _configure(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # we say BEGIN, and only for writing
    # An id whose bytes are no text any more must not take the rows beside it with it.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    connection.execute("PRAGMA synchronous=NORMAL")
    # Room for the ids of a million profiles; and a page that many transactions change goes into
    # the file once for up to 40 MB of them.
    connection.execute("PRAGMA cache_size=-32768")
    connection.execute("PRAGMA wal_autocheckpoint=10000")


def _create(path: Path) -> None:
    """Make an empty store aside and put it in place, unless another process was quicker."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        aside = Path(folder) / path.name
        engine = _file_engine(aside)
        with engine.begin() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            _create_tables(connection)
        engine.dispose()
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(aside)  # a rename would take the place of another process's store


def _create_tables(connection: Connection) -> None:
    metadata.create_all(connection)
    if connection.execute(select(facts.c.value).where(facts.c.key == "format")).first() is None:
        connection.execute(insert(facts).values(key="format", value=FORMAT))


def _refuse_damaged(path: Path) -> None:
    """Refuse what SQLite would take for a new database, or for one that lacks its end."""
    with path.open("rb") as file:
        header = file.read(100)
        size = os.fstat(file.fileno()).st_size
    if not header.startswith(b"SQLite format 3\0") or len(header) < 100:
        raise DamagedStore(
            f"{path} ({size} bytes) is not a profile store, or it is truncated: {REMEDY}; "
            "a store begins in a file that does not exist yet"
        )
    page, pages = (int.from_bytes(header[at], "big") for at in (slice(16, 18), slice(28, 32)))
    expected = (65536 if page == 1 else page) * pages
    # With a log beside it the file may lack pages that the log still has: SQLite knows.
    if size < expected and not path.with_name(f"{path.name}-wal").exists():
        raise DamagedStore(
            f"{path} is truncated: it has {size} bytes of {expected}. Take it from a backup; or "
            f"{REMEDY}"
        )


def _open_server(url: URL) -> tuple[Engine, str]:
    name = url.set(drivername="postgresql").render_as_string(hide_password=True)
    try:
        engine = create_engine(url, pool_pre_ping=True)
        with engine.begin() as connection:
            # Tables that two create at once clash even where each asks whether they exist.
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            _create_tables(connection)
            _refuse_format(connection, name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a store on PostgreSQL needs psycopg 3 ({error}): "
            "pip install 'lightning-pelt[profiles]'"
        ) from error
    except OperationalError as error:
        raise ConnectionError(f"{name} cannot be reached: {error.orig}") from error
    return engine, name


def _refuse_format(connection: Connection, name: str) -> None:
    found = connection.execute(select(facts.c.value).where(facts.c.key == "format")).scalar()
    if found != FORMAT:
        raise ValueError(
            f"{name} is a store of format {found}, and this version reads {FORMAT}: read it with "
            "the version that wrote it"
        )
