"""Profiles of many users in one database: a SQLite file, or a PostgreSQL server for a fleet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

try:
    from sqlalchemy import Connection, delete, insert, select, union_all
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"a ProfileStore needs SQLAlchemy ({error}): pip install 'lightning-pelt[profiles]'"
    ) from error

from lightning_pelt.profiles._database import (
    QUERY,
    Database,
    bank_of,
    chunks,
    numbers,
    replace_rows,
)
from lightning_pelt.profiles._records import (
    SHOWN,
    DamagedProfile,
    Parts,
    UnknownProfile,
    check_ids,
    check_rows,
    id_fault,
    more,
    sealed,
    sound,
    to_parts,
)
from lightning_pelt.profiles._shards import MANIFEST, Writer, read_manifest, read_shard
from lightning_pelt.profiles._tables import DamagedStore, facts, history, profiles, retired
from lightning_pelt.profiles.profile import Profile

__all__ = ["DamagedProfile", "DamagedStore", "ProfileStore", "UnknownProfile"]

TRANSACTION = 10_000  # profiles that put_many writes at once
TRANSACTION_BYTES = 2**26  # or fewer, of larger ones


class ProfileStore:
    """Profiles by id, with their older versions, all of one bank.

    The same calls work on both databases. Many may read while one writes; writers take turns. A
    write is a transaction: a process that dies in the middle of one loses that one. (A computer
    that loses power may lose the last few on SQLite, whole ones, and never damages the file.) Each
    row has a checksum over its id, version and parts, which every read checks.

    Args:
        url: path of a SQLite file, made where it does not exist, or ``sqlite:///path``;
            ``postgresql://user@host/database`` for a server.

    Raises:
        ValueError: another kind of database; or a file that is not a store, or is truncated.
        ConnectionError: the server cannot be reached.
        ModuleNotFoundError: the extra ``profiles`` is not installed.
    """

    def __init__(self, url: str | Path = "profiles.db") -> None:
        self._database = Database(url)
        self.name = self._database.name

    def __enter__(self) -> ProfileStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back all connections."""
        self._database.engine.dispose()

    @property
    def bank(self) -> str | None:
        """Digest of the bank that all profiles choose from; None before the first is put."""
        return self._database.bank

    def put(self, id: str, profile: Profile) -> int:
        """Keep ``profile``, and what ``id`` had before as an older version.

        Args:
            id: 1 to 200 characters.
            profile: of the store's bank; the first one decides which that is.

        Returns:
            The number of its version: 1, or one more than the last one ever given to this id.

        Raises:
            ValueError: the profile is of another bank, or the id is none.
        """
        return self._put({id: profile})[id]

    def put_many(self, items: Iterable[tuple[str, Profile]], progress: bool = False) -> int:
        """Keep many, ten thousand in a transaction, or fewer of larger ones.

        Returns:
            How many.

        Raises:
            ValueError: as for :meth:`put`. Transactions before that one are kept, it is not.
        """
        written = 0
        for batch in _transactions(tqdm(items, unit=" profiles", disable=not progress)):
            written += len(self._put(batch))
        return written

    def get(self, id: str, version: int | None = None) -> Profile:
        """The profile of ``id``, by default its latest version.

        Raises:
            UnknownProfile: there is none of this id, or it does not have this version.
            DamagedProfile: its row is not what was written.
        """
        if version is None:
            return self.get_many([id])[id]
        tables = (profiles, history) if id_fault(id) is None else ()  # versions move to the latter
        read = [one for table in tables for one in self._database.read(table, [id])]
        found = {number: profile for _, number, profile in read}
        damaged = [profile for profile in found.values() if isinstance(profile, str)]
        if version in found:
            return sound(id, found[version])
        if damaged:  # it may have been this one
            raise DamagedProfile({id: damaged[0]})
        raise UnknownProfile(
            f"the profile {id!r} has no version {version}: it has {self.versions(id)}", [id]
        )

    def get_many(self, ids: Iterable[str]) -> dict[str, Profile]:
        """The latest version of each, in the order of ``ids``.

        Raises:
            UnknownProfile: some are not there; all of them are named.
            DamagedProfile: rows of some are not what was written; all of them are named.
        """
        wanted = list(dict.fromkeys(ids))
        read = self._database.read(profiles, [id for id in wanted if id_fault(id) is None])
        found = {id: profile for id, _, profile in read if isinstance(profile, Profile)}
        if len(found) < len(read):
            raise DamagedProfile({id: why for id, _, why in read if isinstance(why, str)})
        if len(found) < len(wanted):
            raise self._unknown([id for id in wanted if id not in found])
        return {id: found[id] for id in wanted}

    def latest(self, ids: Iterable[str]) -> dict[str, int]:
        """The number of the latest version of each; ids that the store does not have are left out.

        Cheap, since no mask is read: for caches, whose keys are id and version.
        """
        with self._database.reading() as connection:
            return numbers(connection, profiles, [id for id in ids if id_fault(id) is None])

    def versions(self, id: str) -> list[int]:
        """The numbers of all its versions, the latest at the end.

        Raises:
            UnknownProfile: there is no such profile.
        """
        if id_fault(id) is not None:
            raise self._unknown([id])
        both = [select(table.c.version).where(table.c.id == id) for table in (profiles, history)]
        with self._database.reading() as connection:
            found = sorted(connection.execute(union_all(*both)).scalars())
        if not found:
            raise self._unknown([id])
        return found

    def delete(self, id: str) -> None:
        """Forget a profile and all its versions, but not how many there were.

        Raises:
            UnknownProfile: there is no such profile.
        """
        with self._database.writing() as connection:
            last = numbers(connection, profiles, [id] if id_fault(id) is None else [])
            if not last:
                raise self._unknown([id])
            for table in (profiles, history, retired):
                connection.execute(delete(table).where(table.c.id == id))
            connection.execute(insert(retired).values(id=id, version=last[id]))

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and bool(self.latest([id]))

    def __len__(self) -> int:
        return self._database.count(profiles)

    def ids(self) -> Iterator[str]:
        """All ids in the order of their code points, read some thousands at a time."""
        return self._database.ids(profiles)

    def iterate(self, batch: int = 1000) -> Iterator[tuple[str, Profile]]:
        """All ids and profiles in the order of :meth:`ids`, ``batch`` of them read at a time.

        No transaction stays open between two batches, so others may write meanwhile.

        Raises:
            DamagedProfile: when its turn comes.
        """
        _check_positive("batch", batch)
        for id, _, profile in self._database.walk(profiles, batch):
            yield id, sound(id, profile)

    def verify(self, progress: bool = False) -> list[tuple[str, str]]:
        """Read all versions of all profiles.

        Returns:
            Id and reason of each that is damaged. On SQLite also what its own check of the file
            says, under an empty id.
        """
        bad: list[tuple[str, str]] = []
        try:
            total = self._database.count(profiles) + self._database.count(history)
            with tqdm(total=total, unit=" profiles", disable=not progress) as bar:
                for table in (profiles, history):
                    for id, version, profile in self._database.walk(table):
                        if isinstance(profile, str):
                            bad.append((id, f"version {version}: {profile}"))
                        bar.update()
        except DamagedStore as error:  # the index of ids: what it leads to is still read by id
            bad.append(("", str(error)))
        return bad + [("", f"the file: {line}") for line in self._database.complaints()]

    def export(
        self, folder: str | Path, rows_per_shard: int = 100_000, progress: bool = False
    ) -> Path:
        """Write the latest version of every profile, with its number, as sealed safetensors shards.

        Raises:
            FileExistsError: the folder holds an export already.
            ValueError: there is nothing to export.
            DamagedProfile: a row is damaged. Without a manifest, the shards so far are no export.
        """
        _check_positive("rows_per_shard", rows_per_shard)
        folder = Path(folder)
        if (folder / MANIFEST).exists():
            raise FileExistsError(f"{folder} holds an export already: choose another folder")
        if self.bank is None:
            raise ValueError(f"{self.name} has no profiles to export")
        folder.mkdir(parents=True, exist_ok=True)
        writer = Writer(folder, self.bank, rows_per_shard)
        walk = tqdm(
            self._database.walk(profiles), total=len(self), unit=" profiles", disable=not progress
        )
        for id, version, profile in walk:
            writer.add((to_parts({id: sound(id, profile)})[0], version))
        writer.close()
        return folder

    def import_shards(self, folder: str | Path, progress: bool = False) -> int:
        """Bring in what :meth:`export` wrote, once every shard was found whole.

        Versions keep their numbers. Where the store has the same or a later version, it stays.

        Returns:
            How many profiles were written.

        Raises:
            FileNotFoundError: there is no manifest.
            ValueError: a shard is missing, truncated or changed, which is named, or foreign; or
                the export is of another bank.
        """
        bank, shards = read_manifest(Path(folder))
        written = 0
        for shard in tqdm(shards, unit=" shards", disable=not progress):
            for batch in chunks(read_shard(shard), TRANSACTION):
                written += self._restore(batch, bank)
        return written

    def _put(self, items: Mapping[str, Profile]) -> dict[str, int]:
        check_ids(items)
        versions: dict[str, int] = {}
        with self._database.writing() as connection:
            self._claim(connection, {id: profile.bank for id, profile in items.items()})
            for some in chunks(items.items(), QUERY):
                versions |= _put_some(connection, dict(some))
        return versions

    def _restore(self, given: Sequence[tuple[Parts, int]], bank: str) -> int:
        check_ids(one.id for one, _ in given)
        rows = [sealed(one, version, bank) for one, version in given]
        check_rows(rows, bank)
        with self._database.writing() as connection:
            self._claim(connection, {one.id: bank for one, _ in given})
            before = numbers(connection, profiles, [one.id for one, _ in given])
            rows = [row for row in rows if row["version"] > before.get(row["id"], 0)]
            replace_rows(connection, rows, [row["id"] for row in rows if row["id"] in before])
        return len(rows)

    def _claim(self, connection: Connection, banks: Mapping[str, str]) -> None:
        """Refuse profiles, given by id and digest, of another bank than the store's."""
        bank = bank_of(connection)
        if bank is None:
            bank = next(iter(banks.values()))
            connection.execute(insert(facts).values(key="bank", value=bank))
        for id, digest in banks.items():
            if digest != bank:
                raise ValueError(
                    f"the profile {id!r} chooses from the bank {digest}, and {self.name} keeps "
                    f"profiles of the bank {bank}: give it a store of its own, or train it on "
                    "that bank"
                )

    def _unknown(self, ids: Sequence[str]) -> UnknownProfile:
        named = ", ".join(repr(id) for id in ids[:SHOWN])
        return UnknownProfile(
            f"{self.name} has no profile {named}{more(ids)}: ids() gives those that it has", ids
        )


def _put_some(connection: Connection, items: dict[str, Profile]) -> dict[str, int]:
    """Some hundreds at a time: thousands of rows would keep Python's garbage collector busy."""
    before = numbers(connection, profiles, items)
    deleted = connection.execute(select(retired.c.id).limit(1)).first() is not None
    last = numbers(connection, retired, items) | before if deleted else before
    versions = {id: 1 + last.get(id, 0) for id in items}
    bank = next(iter(items.values())).bank
    rows = [sealed(one, versions[one.id], bank) for one in to_parts(items)]
    replace_rows(connection, rows, list(before))
    return versions


def _transactions(items: Iterable[tuple[str, Profile]]) -> Iterator[dict[str, Profile]]:
    """Not too many at once, and in each an id once: the second is another version."""
    batch: dict[str, Profile] = {}
    taken = 0
    for id, profile in items:
        if id in batch or len(batch) == TRANSACTION or taken > TRANSACTION_BYTES:
            yield batch
            batch, taken = {}, 0
        batch[id] = profile
        taken += _bytes_of(profile)
    if batch:
        yield batch


def _bytes_of(profile: Profile) -> int:
    arrays = [profile.masks, *(profile.head or {}).values()]
    return sum(array.nbytes for array in arrays) + (
        0 if profile.norm is None else profile.norm.nbytes
    )


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")
