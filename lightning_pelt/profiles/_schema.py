"""The tables of a store, and how files and servers with these tables are opened."""

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

from lightning_pelt.utils.errors import unknown

FORMAT = "1"
BUSY_SECONDS = 30  # that a writer waits for other writers
REMEDY = "import_shards() of an export restores all of its profiles in a new store"
_ADVISORY_LOCK = 0x58504654  # an arbitrary number, the same in all processes

metadata = MetaData()
# Sorted by code points on every server, as in SQLite and Python.
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


# SQLite keeps `profiles` in the order of insertion, with a separate index of ids. Without row ids
# the table would be in the order of ids, and random ids would leave its pages one third empty.
profiles = Table("xpeft_profiles", metadata, *_row_columns(versions_in_key=False))
history = Table("xpeft_history", metadata, *_row_columns(versions_in_key=True))
# The last version of deleted profiles. A number is never used twice, and caches rely on that.
deleted = Table(
    "xpeft_retired",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("version", Integer, nullable=False),
)
info = Table(
    "xpeft_store",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)


class DamagedStore(ValueError):
    """A file is not a database, or a damaged one.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_pelt.profiles.store import ProfileStore
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "notes.txt")
        ...     _ = path.write_text("not a database")
        ...     try:
        ...         store = ProfileStore(path)
        ...     except DamagedStore:
        ...         print("not a store")
        not a store
    """


def open_engine(url: str | Path) -> tuple[Engine, str]:
    """Open a store's database, and create its tables if they do not exist.

    Returns:
        The engine, and the name of the store for messages.

    Raises:
        ValueError: another kind of database; or a file that is not a store, damaged or truncated.
        ConnectionError: the server cannot be reached.
    """
    if isinstance(url, Path) or "://" not in url:
        return _open_file(Path(url))
    target = make_url(url)
    kind = target.drivername.split("+")[0]
    if kind == "sqlite":
        if target.database in (None, "", ":memory:"):
            raise ValueError(f"{url!r} has no path: use one, such as 'profiles.db'")
        return _open_file(Path(str(target.database)))
    if kind in ("postgresql", "postgres"):
        return _open_server(target.set(drivername="postgresql+psycopg"))
    raise unknown("kind of store", kind, ["sqlite", "postgresql"])


@contextmanager
def damage_reported(name: str) -> Iterator[None]:
    """Turn SQLite's errors about a damaged file into a ``DamagedStore`` with the remedy."""
    try:
        yield
    except DatabaseError as error:
        # All other errors of SQLite are subclasses.
        if type(error.orig) is not sqlite3.DatabaseError:
            raise
        raise DamagedStore(f"{name} is damaged ({error.orig}): {REMEDY}") from error


def _open_file(path: Path) -> tuple[Engine, str]:
    path = path.absolute()
    if not path.exists():
        _create_file(path)
    _check_file(path)
    engine = _file_engine(path)
    with damage_reported(str(path)), engine.connect() as connection:
        try:
            _check_format(connection, str(path))
        except OperationalError as error:
            raise ValueError(
                f"{path} is a database, but not a profile store: use another path"
            ) from error
    return engine, str(path)


def _file_engine(path: Path) -> Engine:
    url = URL.create("sqlite+pysqlite", database=str(path))
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _configure)
    return engine


def _configure(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # `Database.writing` begins transactions
    # An id with bytes that are not UTF-8 must not make the rows beside it unreadable.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    connection.execute("PRAGMA synchronous=NORMAL")
    # The cache holds the ids of a million profiles. With this interval, a page that several
    # transactions change within 40 MB of log is written to the file once.
    connection.execute("PRAGMA cache_size=-32768")
    connection.execute("PRAGMA wal_autocheckpoint=10000")


def _create_file(path: Path) -> None:
    """Create an empty store in a temporary folder and link it, unless another process was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        engine = _file_engine(temporary)
        with engine.begin() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            _create_tables(connection)
        engine.dispose()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            path.hardlink_to(temporary)  # a rename would replace the store of another process


def _create_tables(connection: Connection) -> None:
    metadata.create_all(connection)
    if connection.execute(select(info.c.value).where(info.c.key == "format")).first() is None:
        connection.execute(insert(info).values(key="format", value=FORMAT))


def _check_file(path: Path) -> None:
    """Raise a ``DamagedStore`` for files that SQLite would take for an empty or complete one."""
    with path.open("rb") as file:
        header = file.read(100)
        size = os.fstat(file.fileno()).st_size
    if not header.startswith(b"SQLite format 3\0") or len(header) < 100:
        raise DamagedStore(
            f"{path} ({size} bytes) is not a profile store, or it is truncated: {REMEDY}; "
            "a new store needs a path that does not exist"
        )
    page, pages = (int.from_bytes(header[at], "big") for at in (slice(16, 18), slice(28, 32)))
    expected = (65536 if page == 1 else page) * pages
    # If there is a log, the file may lack pages that the log contains, which SQLite checks.
    if size < expected and not path.with_name(f"{path.name}-wal").exists():
        raise DamagedStore(
            f"{path} is truncated: it has {size} bytes, expected {expected}. Restore it from a "
            f"backup; or {REMEDY}"
        )


def _open_server(url: URL) -> tuple[Engine, str]:
    name = url.set(drivername="postgresql").render_as_string(hide_password=True)
    try:
        engine = create_engine(url, pool_pre_ping=True)
        with engine.begin() as connection:
            # Two processes that create the tables at the same time conflict, even with IF NOT
            # EXISTS.
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            _create_tables(connection)
            _check_format(connection, name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a store on PostgreSQL needs psycopg 3 ({error}): "
            "pip install 'lightning-pelt[profiles]'"
        ) from error
    except OperationalError as error:
        raise ConnectionError(f"{name} cannot be reached: {error.orig}") from error
    return engine, name


def _check_format(connection: Connection, name: str) -> None:
    found = connection.execute(select(info.c.value).where(info.c.key == "format")).scalar()
    if found != FORMAT:
        raise ValueError(
            f"{name} is a store of format {found}, and this version reads {FORMAT}: use the "
            "version that wrote it"
        )
