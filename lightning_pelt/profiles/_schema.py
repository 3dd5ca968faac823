"""The tables of a store, and how files and servers with these tables are opened."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    NullPool,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from lightning_pelt.profiles._errors import REMEDY, DamagedStore, named_errors
from lightning_pelt.utils.errors import unknown
from lightning_pelt.utils.urls import masked

FORMAT = "2"  # 1 kept the ids of deleted profiles
BUSY_SECONDS = 30  # that a writer waits for other writers
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
info = Table(
    "xpeft_store",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)


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
    try:
        target = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(
            f"{masked(url)!r} is not the URL of a store: expected 'postgresql://user@host/name' or "
            "a path"
        ) from None  # the cause repeats the URL with its password
    kind = target.drivername.split("+")[0]
    if kind == "sqlite":
        if target.database in (None, "", ":memory:"):
            raise ValueError(f"{masked(url)!r} has no path: use one, such as 'profiles.db'")
        return _open_file(Path(str(target.database)))
    if kind in ("postgresql", "postgres"):
        return _open_server(target.set(drivername="postgresql+psycopg"))
    raise unknown("kind of store", kind, ["sqlite", "postgresql"])


def _open_file(path: Path) -> tuple[Engine, str]:
    path = path.absolute()
    if not path.exists():
        _create_file(path)
    _check_file(path)
    engine = _file_engine(path)
    with named_errors(str(path)), engine.connect() as connection:
        if not inspect(connection).has_table(info.name):
            raise ValueError(f"{path} is a database, but not a profile store: use another path")
        _check_format(connection, str(path))
    return engine, str(path)


def _file_engine(path: Path) -> Engine:
    """An engine for a file; one that cannot be written is opened for every read."""
    url = URL.create("sqlite+pysqlite", database=str(path))
    if is_writable(path):
        engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    else:
        engine = create_engine(url, creator=partial(_read_only, path), poolclass=NullPool)
    event.listen(engine, "connect", _configure)
    return engine


def is_writable(path: Path) -> bool:
    """Whether this process may write a file and create SQLite's log beside it."""
    effective = os.access in os.supports_effective_ids
    needed = (path, path.parent) if path.exists() else (path.parent,)
    return all(os.access(each, os.W_OK, effective_ids=effective) for each in needed)


def _read_only(path: Path) -> sqlite3.Connection:
    """A connection that writes nothing, not even the index of a log.

    Without a log, no process is writing, and the file is complete: it is read without locks, which
    SQLite could not create. A write that starts during the read is found by the checksums of rows.
    """
    log = path.with_name(f"{path.name}-wal")
    mode = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
    address = f"file:{quote(str(path))}?{mode}"
    # As in SQLAlchemy's pool of files: another thread may close a connection.
    return sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, check_same_thread=False)


def _configure(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # `Database.writing` begins transactions
    # An id with bytes that are not UTF-8 must not make the rows beside it unreadable.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA secure_delete=ON")  # zeros in the place of deleted rows
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
    # SQLite opens a file of a later format, bytes 18 and 19, for reading only and reports nothing.
    if not header.startswith(b"SQLite format 3\0") or len(header) < 100 or max(header[18:20]) > 2:
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
    name = masked(url.set(drivername="postgresql").render_as_string(hide_password=False))
    try:
        engine = create_engine(url, pool_pre_ping=True)
        with named_errors(name), engine.begin() as connection:
            # Two processes that create the tables at the same time conflict, even with IF NOT
            # EXISTS.
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            if not inspect(connection).has_table(info.name):
                _create_tables(connection)
            _check_format(connection, name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a store on PostgreSQL needs psycopg 3 ({error}): "
            "pip install 'lightning-pelt[profiles]'"
        ) from error
    return engine, name


def _check_format(connection: Connection, name: str) -> None:
    """Check the number of the format, and that no table and no column is missing."""
    found = connection.execute(select(info.c.value).where(info.c.key == "format")).scalar()
    if found != FORMAT:
        raise ValueError(
            f"{name} is a store of format {found}, and this version reads {FORMAT}: export "
            "it with the version that wrote it, and import the export into a new store"
        )
    for table in metadata.sorted_tables:
        connection.execute(select(table).limit(0))
