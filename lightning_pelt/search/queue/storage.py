"""Storage of a ledger: a journal file that survives killed writers, or a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from lightning_pelt.utils.errors import unknown
from lightning_pelt.utils.files import naming_disk
from lightning_pelt.utils.urls import masked

BUSY_SECONDS = 60  # a writer waits this long for the lock of a SQLite file
_FIRST = b'{"op_code":'  # start of every line of an Optuna journal
_ADVISORY_LOCK = 5_021_821  # key of the PostgreSQL lock; arbitrary, but unlikely to be in use
_LOCK = ".flock"  # not Optuna's ".lock", which Optuna removes after 30 s
# What Optuna raises for a line that is not JSON, lacks a field, or has another type.
_UNREADABLE = (ValueError, LookupError, AssertionError, TypeError, AttributeError, RecursionError)


def open_storage(location: str) -> BaseStorage:
    """Open Optuna's storage at ``location``; create it, with its folders, if it does not exist.

    Args:
        location: path of a journal, or URL of a database: ``"postgresql://user@host/name"`` or
            ``"sqlite:///search.db"``.

    Raises:
        ValueError: the database is of an unknown kind, or the file holds something else.
        ConnectionError: the server cannot be reached.
    """
    return _open_database(location) if "://" in location else _open_journal(Path(location))


@contextmanager
def damage_reported(location: str) -> Iterator[None]:
    """Turn what Optuna raises for an unreadable journal into a ``ValueError`` with the remedy."""
    try:
        yield
    except DamagedLedger:
        raise
    except _UNREADABLE as error:
        raise DamagedLedger(
            f"{masked(location)} is damaged: Optuna cannot read one of its lines ({error!r}). "
            "Restore the file from a backup, or cut it before that line, which keeps all earlier "
            "lines"
        ) from error


class DamagedLedger(ValueError):
    """A ledger lacks a record, or has one that cannot be read or belongs to another job."""


class _JournalLock:
    """Exclusive write access to the journal, released when the holding process ends.

    Optuna's lock is a file, which a killed process leaves behind. The other processes then wait
    30 s and remove it, by when it may be the lock of another process. The kernel releases
    ``flock`` however the process ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(f"{path}{_LOCK}")

    def acquire(self) -> bool:
        self._lock.acquire(poll_interval=0.002)
        try:
            _cut_unfinished_line(self._path)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()


def _cut_unfinished_line(path: Path) -> None:
    """Remove the incomplete last line that a killed writer left; no process relies on it.

    Otherwise the next line would be appended to it, and the journal would be unreadable from there.
    """
    with path.open("r+b") as file:
        size = end = file.seek(0, 2)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


class _Journal(JournalFileBackend):
    """A journal whose errors of a full disk name it; the next writer cuts the unfinished line."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with naming_disk(Path(self._file_path)):
            super().append_logs(logs)


def _open_journal(path: Path) -> JournalStorage:
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    remedy = (
        "give the path of a journal or of a file that does not exist yet; a database is a URL, "
        "such as 'sqlite:///search.db'"
    )
    if path.is_dir():
        raise ValueError(f"{path} is a folder: {remedy}")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(len(_FIRST))
        if not _FIRST.startswith(start):
            raise ValueError(f"{path} is not a search journal: it starts {start!r}; {remedy}")
    with damage_reported(str(path)):
        # Optuna does not export the base class of locks; it calls only `acquire` and `release`.
        backend = _Journal(str(path), _JournalLock(path))  # type: ignore[arg-type]
        return JournalStorage(backend)


def _open_database(location: str) -> RDBStorage:
    try:
        url = make_url(location)
    except (ArgumentError, ValueError):
        raise ValueError(
            f"{masked(location)!r} is not the URL of a database: expected "
            "'postgresql://user@host/name' or 'sqlite:///search.db'"
        ) from None  # the cause repeats the URL with its password
    kind = url.drivername.split("+")[0]
    if kind == "sqlite":
        return _open_sqlite(url, location)
    if kind in ("postgresql", "postgres"):
        return _open_postgresql(url.set(drivername="postgresql+psycopg"))
    raise unknown("kind of storage", kind, ["sqlite", "postgresql"])


def _open_sqlite(url: URL, location: str) -> RDBStorage:
    if url.database in (None, "", ":memory:"):
        raise ValueError(
            f"{masked(location)} names no file: give one, such as 'sqlite:///search.db'"
        )
    path = Path(str(url.database)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    url = url.set(database=str(path))
    try:
        with FileLock(f"{path}{_LOCK}"):  # two processes cannot create the tables at once
            storage = _rdb_storage(url, connect_args={"timeout": BUSY_SECONDS})
    except DatabaseError as error:
        raise ValueError(
            f"{path} is not a SQLite database, or it is in use ({error.orig}): give the path of a "
            "search database, or of a file that does not exist yet"
        ) from error
    _serialize_transactions(storage.engine)
    return storage


def _serialize_transactions(engine: Engine) -> None:
    """Give every transaction exclusive access to the file.

    Optuna locks a trial's row while it reads and changes the trial's state. SQLite has no row
    locks, so two workers would take the same job.
    """

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # BEGIN is sent below

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # existing connections lack these listeners


def _open_postgresql(url: URL) -> RDBStorage:
    name = masked(url.render_as_string(hide_password=False))
    try:
        with _advisory_lock(url):
            return _rdb_storage(url, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a search on PostgreSQL needs psycopg 3 ({error}): pip install 'psycopg[binary]'"
        ) from error
    except OperationalError as error:
        raise ConnectionError(f"cannot reach {name}: {error.orig}") from error


@contextmanager
def _advisory_lock(url: URL) -> Iterator[None]:
    """Keep other processes from creating tables on the server at the same time."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
            yield
    finally:
        engine.dispose()


def _rdb_storage(url: URL, **engine: Any) -> RDBStorage:
    return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=engine)
