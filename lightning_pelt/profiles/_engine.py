"""The rows of a store's database: read by id, iterate in order, and replace."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    BindParameter,
    Connection,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    type_coerce,
)
from sqlalchemy.types import NullType

from lightning_pelt.profiles._errors import (
    REMEDY,
    DamagedStore,
    named_errors,
    read_only,
)
from lightning_pelt.profiles._row_codec import decode, is_version
from lightning_pelt.profiles._schema import (
    history,
    info,
    is_writable,
    open_engine,
    profiles,
)
from lightning_pelt.profiles.profile import Profile, is_digest

PAGE = 5000  # ids per query of an iteration
RETIRED = "retired"  # key of the number below which a new profile does not start
QUERY = 500  # ids that one query names
_NOT_UTF8 = "\ufffd"  # takes the place of bytes that are not UTF-8
# Writers run one after another; readers do not wait.
_LOCK = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": f"LOCK TABLE {info.name} IN EXCLUSIVE MODE",
}

# Built once, since SQLAlchemy takes as long to build a statement as SQLite to run it.
_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_ROWS_BY_ID = {
    # Values as the driver returns them: SQLAlchemy would convert a number to that many bytes.
    table: select(*(type_coerce(column, NullType()) for column in table.c)).where(
        table.c.id.in_(_IDS)
    )
    for table in (profiles, history)
}
_VERSIONS_BY_ID = select(profiles.c.id, profiles.c.version).where(profiles.c.id.in_(_IDS))

Item = TypeVar("Item")
ReadResult = tuple[str, int, Profile | str]  # id, version, and the profile or its damage


class Database:
    """A SQLite file or a PostgreSQL server with the tables of a store."""

    def __init__(self, url: str | Path) -> None:
        self.engine, self.name = open_engine(url)
        self.kind = self.engine.dialect.name
        self._bank: str | None = None
        # A single statement sees a consistent state anyway, and autocommit saves two round trips
        # to the server per statement. Connections to SQLite are in this mode already.
        self._reader = (
            self.engine.execution_options(isolation_level="AUTOCOMMIT")
            if self.kind == "postgresql"
            else self.engine
        )

    @property
    def bank(self) -> str | None:
        """The digest of the bank of all profiles. Once it is set, it never changes.

        Raises:
            DamagedStore: see :func:`bank_of`.
        """
        if self._bank is None:
            with self.reading() as connection:
                self._bank = bank_of(connection, self.name)
        return self._bank

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for queries."""
        with named_errors(self.name), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that starts when no other writer has one.

        Raises:
            PermissionError: the database is read-only.
        """
        if self.kind == "sqlite" and not is_writable(Path(self.name)):
            raise read_only(self.name)
        with named_errors(self.name), self.engine.begin() as connection:
            connection.exec_driver_sql(_LOCK[self.kind])
            yield connection

    def erase(self) -> None:
        """Remove the bytes of deleted rows from SQLite's log, or those of a server's tables."""
        with named_errors(self.name), self._reader.connect() as connection:
            if self.kind != "sqlite":
                connection.exec_driver_sql(f"VACUUM {profiles.name}, {history.name}")
            elif connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]:
                warnings.warn(
                    f"{self.name}-wal still holds the bytes of deleted rows, since another process "
                    "reads the store: they go with the next deletion, or when the last one closes",
                    stacklevel=4,
                )

    def read(self, table: Table, ids: Iterable[str]) -> list[ReadResult]:
        """All rows of ``table`` with these ids; ids without a row are left out."""
        rows: list[Any] = []
        lost: list[ReadResult] = []
        for batch in chunks(ids, QUERY):
            self._fetch(table, batch, rows, lost)
        decoded = decode(rows, self.bank or "") if rows else []
        return lost + [(row[0], row[1], one) for row, one in zip(rows, decoded, strict=True)]

    def _fetch(
        self, table: Table, ids: Sequence[str], rows: list[Any], lost: list[ReadResult]
    ) -> None:
        try:
            with self.reading() as connection:
                rows += connection.execute(_ROWS_BY_ID[table], {"ids": ids}).all()
        except DamagedStore:  # a damaged page contains the rows of a few ids
            if len(ids) == 1:
                lost.append((ids[0], 0, "its page of the file is damaged"))
                return
            for id in ids:
                self._fetch(table, [id], rows, lost)

    def iterate(self, table: Table, batch: int = 1000) -> Iterator[ReadResult]:
        """All rows in the order of their ids; no statement stays open between two batches.

        Raises:
            DamagedStore: as :meth:`ids`.
        """
        for ids in chunks(self.ids(table), batch):
            read = self.read(table, ids)
            found = {id for id, _, _ in read}
            # Other ids without a row were deleted in the meantime.
            lost = [id for id in ids if id not in found and _NOT_UTF8 in id]
            read += [(id, 0, "its id has bytes that are not UTF-8") for id in lost]
            yield from sorted(read, key=lambda read: read[0])

    def ids(self, table: Table) -> Iterator[str]:
        """The distinct ids, in the order of code points.

        Raises:
            DamagedStore: the index of the ids is damaged, or rows have an id that is not text. The
                other ids have been returned before.
        """
        after, damaged = "", set[str]()
        while True:
            query = select(table.c.id).distinct().where(table.c.id > after)
            with self.reading() as connection:
                query = query.order_by(table.c.id).limit(PAGE)
                page = connection.execute(query).scalars().all()
            texts = [id for id in page if isinstance(id, str) and id not in damaged]
            yield from texts
            damaged.update(id for id in texts if _NOT_UTF8 in id)
            if len(page) < PAGE:
                break
            # The database compares the bytes of an id, which those of a damaged one are not.
            last = max((id for id in texts if _NOT_UTF8 not in id), default="")
            if last <= after:
                raise DamagedStore(f"{self.name} is damaged: its index of ids is wrong. {REMEDY}")
            after = last
        self._check_ids_are_text(table)

    def _check_ids_are_text(self, table: Table) -> None:
        if self.kind != "sqlite":  # which stores a value of any type in any column
            return
        query = select(func.count()).where(func.typeof(table.c.id) != "text")
        with self.reading() as connection:
            wrong = connection.execute(query).scalar_one()
        if wrong:
            raise DamagedStore(
                f"{self.name} is damaged: {wrong} rows have an id that is not text. All other "
                f"profiles can be read; {REMEDY}"
            )

    def count(self, table: Table) -> int:
        """Number of rows."""
        with self.reading() as connection:
            return connection.execute(select(func.count()).select_from(table)).scalar_one()

    def integrity_errors(self) -> list[str]:
        """The result of SQLite's integrity check; empty for servers, which need other tools."""
        if self.kind != "sqlite":
            return []
        try:
            with self.reading() as connection:
                lines = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        except DamagedStore as error:
            return [str(error)]
        return [line for line in lines if line != "ok"]


def bank_of(connection: Connection, name: str) -> str | None:
    """The digest of the bank of all profiles in the store ``name``.

    Raises:
        DamagedStore: there are profiles, and the stored value is missing or not a digest.
    """
    found = connection.execute(select(info.c.value).where(info.c.key == "bank")).scalar()
    if is_digest(found):
        return found
    if found is None and connection.execute(select(profiles.c.id).limit(1)).first() is None:
        return None
    raise DamagedStore(f"{name} is damaged: {found!r} is not the digest of a bank. {REMEDY}")


def latest_versions(connection: Connection, ids: Iterable[str]) -> dict[str, Any]:
    """The latest version of each profile. A damaged one may be any value."""
    found: dict[str, Any] = {}
    for batch in chunks(ids, QUERY):
        rows = connection.execute(_VERSIONS_BY_ID, {"ids": batch})
        found.update((id, version) for id, version in rows)
    return found


def retired_version(connection: Connection, name: str) -> int:
    """The largest number of a version of a deleted profile; 0 for none.

    Later profiles start above it: a number is never used twice, and caches rely on that. It is all
    that is kept of deleted profiles.

    Raises:
        DamagedStore: the stored value is not a number.
    """
    found = connection.execute(select(info.c.value).where(info.c.key == RETIRED)).scalar()
    if found is None:
        return 0
    if isinstance(found, str) and found.isdecimal() and is_version(1 + int(found)):
        return int(found)
    raise DamagedStore(f"{name} is damaged: {found!r} is not the number of a version. {REMEDY}")


def replace_rows(connection: Connection, rows: list[dict[str, Any]], before: Iterable[str]) -> None:
    """Move the rows of the ids ``before`` to the history, and insert ``rows``."""
    for batch in chunks(before, QUERY):
        old = select(profiles).where(profiles.c.id.in_(batch))
        connection.execute(insert(history).from_select(list(profiles.c.keys()), old))
        connection.execute(delete(profiles).where(profiles.c.id.in_(batch)))
    if rows:
        connection.execute(insert(profiles), rows)


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """``items`` in lists of ``size``; the last one may be shorter."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
