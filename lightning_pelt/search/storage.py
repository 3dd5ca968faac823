"""Where a search is kept: a journal that a killed writer cannot break, or a database."""

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

from lightning_pelt.errors import unknown

BUSY_SECONDS = 60  # that a writer waits for its turn at a SQLite file
_FIRST = b'{"op_code":'  # how every line of Optuna's journal begins
_ADVISORY_LOCK = 5_021_821  # of PostgreSQL: any number that nobody else would take
_LOCK = ".flock"  # not Optuna's ".lock": its own would take that away from us after 30 s


def open_storage(place: str) -> BaseStorage:
    """Optuna's storage at ``place``, made with its folders if it is not there yet.

    Args:
        place: the path of a journal, or the URL of a database: ``"postgresql://user@host/name"``
            or ``"sqlite:///search.db"``.

    Raises:
        ValueError: another kind of database, or a file that holds something else.
        ConnectionError: the server cannot be reached.
    """
    return _open_database(place) if "://" in place else _open_journal(Path(place))


class _Lock:
    """A turn at writing the journal, which ends with the process that has it.

    Optuna's own locks are files that a killed process leaves behind: everybody then waits for 30 s
    and takes it away, and it may be a new one by then. ``flock`` belongs to the process, and the
    kernel ends it when the process dies, however it dies.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = FileLock(f"{path}{_LOCK}")

    def acquire(self) -> bool:
        self._turn.acquire(poll_interval=0.002)
        try:
            _cut_unfinished_line(self._path)
        except BaseException:
            self._turn.release()
            raise
        return True

    def release(self) -> None:
        self._turn.release()


def _cut_unfinished_line(path: Path) -> None:
    """Drop what a killed writer left of a line: it told nobody that it had written it.

    The next line would be appended to it, and no process could read the journal from there on.
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


def _open_journal(path: Path) -> JournalStorage:
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    remedy = (
        "give the path of a journal, or of a file that does not exist yet; a database is a URL, "
        "such as 'sqlite:///search.db'"
    )
    if path.is_dir():
        raise ValueError(f"{path} is a folder: {remedy}")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(len(_FIRST))
        if not _FIRST.startswith(start):
            raise ValueError(f"{path} is not a search's journal: it starts {start!r}; {remedy}")
    try:
        # Optuna keeps the class that it declares to itself, and calls no more than these two.
        return JournalStorage(JournalFileBackend(str(path), _Lock(path)))  # type: ignore[arg-type]
    except (ValueError, KeyError, AssertionError) as error:
        raise ValueError(
            f"{path} is damaged: Optuna cannot read a line of it ({error!r}). Take it from a "
            "backup, or cut it before that line: what the lines before it hold is kept"
        ) from error


def _open_database(place: str) -> RDBStorage:
    try:
        url = make_url(place)
    except ArgumentError as error:
        raise ValueError(f"{place!r} is no URL of a database: {error}") from error
    kind = url.drivername.split("+")[0]
    if kind == "sqlite":
        return _open_sqlite(url)
    if kind in ("postgresql", "postgres"):
        return _open_postgresql(url.set(drivername="postgresql+psycopg"))
    raise unknown("kind of storage", kind, ["sqlite", "postgresql"])


def _open_sqlite(url: URL) -> RDBStorage:
    if url.database in (None, "", ":memory:"):
        raise ValueError(f"{url} names no file: give one, such as 'sqlite:///search.db'")
    path = Path(str(url.database)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    url = url.set(database=str(path))
    try:
        with FileLock(f"{path}{_LOCK}"):  # tables that two processes create at once clash
            storage = _storage(url, connect_args={"timeout": BUSY_SECONDS})
    except DatabaseError as error:
        raise ValueError(
            f"{path} is not a SQLite database, or it is in use ({error.orig}): give the path of a "
            "search's database, or of a file that does not exist yet"
        ) from error
    _take_turns(storage.engine)
    return storage


def _take_turns(engine: Engine) -> None:
    """Let every transaction have the file for itself.

    Optuna locks the row of a trial while it looks at its state and changes it. SQLite has no locks
    of rows, and two workers would take the same cell.
    """

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: object) -> None:
        connection.isolation_level = None  # we say BEGIN

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections from before


def _open_postgresql(url: URL) -> RDBStorage:
    name = url.render_as_string(hide_password=True)
    try:
        with _alone(url):
            return _storage(url, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a search on PostgreSQL needs psycopg 3 ({error}): pip install 'psycopg[binary]'"
        ) from error
    except OperationalError as error:
        raise ConnectionError(f"cannot reach {name}: {error.orig}") from error


@contextmanager
def _alone(url: URL) -> Iterator[None]:
    """A moment at a server in which no other process creates tables."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})")
            yield
    finally:
        engine.dispose()


def _storage(url: URL, **engine: Any) -> RDBStorage:
    return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=engine)
