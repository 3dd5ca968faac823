"""The rows of a store's database: read by id, walked in order, replaced by newer ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import BindParameter, Connection, Table, bindparam, delete, func, insert, select

from lightning_pelt.profiles._records import decode
from lightning_pelt.profiles._tables import (
    DamagedStore,
    explained,
    facts,
    history,
    open_engine,
    profiles,
    retired,
)
from lightning_pelt.profiles.profile import Profile

PAGE = 5000  # ids that a walk reads at once
QUERY = 500  # ids that one query names
# Writers take turns, and readers wait for none of them.
_TAKE_TURN = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": f"LOCK TABLE {facts.name} IN EXCLUSIVE MODE",
}

# Made once: SQLAlchemy takes as long to make one as SQLite to answer it.
_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_OF_IDS = {table: select(table).where(table.c.id.in_(_IDS)) for table in (profiles, history)}
_NUMBERS_OF_IDS = {
    table: select(table.c.id, table.c.version).where(table.c.id.in_(_IDS))
    for table in (profiles, retired)
}

Item = TypeVar("Item")
Read = tuple[str, int, Profile | str]  # id, version, and the profile or what is wrong with it


class Database:
    """A SQLite file or a PostgreSQL server with the tables of a store."""

    def __init__(self, url: str | Path) -> None:
        self.engine, self.name = open_engine(url)
        self.kind = self.engine.dialect.name
        self._bank: str | None = None
        # A statement sees one state anyway, and this spares a server two round trips for each. Our
        # connections to SQLite are in this mode as they are.
        self._reader = (
            self.engine.execution_options(isolation_level="AUTOCOMMIT")
            if self.kind == "postgresql"
            else self.engine
        )

    @property
    def bank(self) -> str | None:
        """The digest of all profiles' bank, which never changes once there is one."""
        if self._bank is None:
            with self.reading() as connection:
                self._bank = bank_of(connection)
        return self._bank

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with explained(self.name), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction of its own, once no other writer has one."""
        with explained(self.name), self.engine.begin() as connection:
            connection.exec_driver_sql(_TAKE_TURN[self.kind])
            yield connection

    def read(self, table: Table, ids: Iterable[str]) -> list[Read]:
        """All rows of these ids in ``table``; ids without any are left out."""
        rows: list[Any] = []
        lost: list[Read] = []
        for some in chunks(ids, QUERY):
            self._fetch(table, some, rows, lost)
        made = decode(rows, self.bank or "") if rows else []
        return lost + [(row[0], row[1], one) for row, one in zip(rows, made, strict=True)]

    def _fetch(self, table: Table, ids: Sequence[str], rows: list[Any], lost: list[Read]) -> None:
        try:
            with self.reading() as connection:
                rows += connection.execute(_OF_IDS[table], {"ids": ids}).all()
        except DamagedStore:  # a broken page hides the rows of a few ids
            if len(ids) == 1:
                lost.append((ids[0], 0, "the file is damaged where it was"))
                return
            for id in ids:
                self._fetch(table, [id], rows, lost)

    def walk(self, table: Table, batch: int = 1000) -> Iterator[Read]:
        """All rows in the order of their ids; no statement stays open between two batches."""
        for some in chunks(self.ids(table), batch):
            yield from sorted(self.read(table, some), key=lambda read: read[0])

    def ids(self, table: Table) -> Iterator[str]:
        """Each id once, in the order of code points."""
        after = ""
        while True:
            query = select(table.c.id).distinct().where(table.c.id > after)
            with self.reading() as connection:
                query = query.order_by(table.c.id).limit(PAGE)
                some = connection.execute(query).scalars().all()
            yield from some
            if not some or some[-1] <= after:  # the latter where an id is damaged
                return
            after = some[-1]

    def count(self, table: Table) -> int:
        with self.reading() as connection:
            return connection.execute(select(func.count()).select_from(table)).scalar_one()

    def complaints(self) -> list[str]:
        """What SQLite's own check of its file finds; a server is checked by other means."""
        if self.kind != "sqlite":
            return []
        try:
            with self.reading() as connection:
                said = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        except DamagedStore as error:
            return [str(error)]
        return [line for line in said if line != "ok"]


def bank_of(connection: Connection) -> str | None:
    return connection.execute(select(facts.c.value).where(facts.c.key == "bank")).scalar()


def numbers(connection: Connection, table: Table, ids: Iterable[str]) -> dict[str, int]:
    """The version of each id, in a table that has one row for it."""
    found: dict[str, int] = {}
    for some in chunks(ids, QUERY):
        rows = connection.execute(_NUMBERS_OF_IDS[table], {"ids": some})
        found.update((id, version) for id, version in rows)
    return found


def replace_rows(connection: Connection, rows: list[dict[str, Any]], before: Iterable[str]) -> None:
    """Insert ``rows``, once those of the ids ``before`` have gone into the history."""
    for some in chunks(before, QUERY):
        old = select(profiles).where(profiles.c.id.in_(some))
        connection.execute(insert(history).from_select(list(profiles.c.keys()), old))
        connection.execute(delete(profiles).where(profiles.c.id.in_(some)))
    if rows:
        connection.execute(insert(profiles), rows)


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while some := list(islice(remaining, size)):
        yield some
