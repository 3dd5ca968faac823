"""Profiles of many users in one database: a SQLite file or a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

try:
    from sqlalchemy import select, union_all
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"a ProfileStore needs SQLAlchemy ({error}): pip install 'lightning-pelt[profiles]'"
    ) from error

from lightning_pelt.profiles import _writing
from lightning_pelt.profiles._engine import Database, chunks, latest_versions
from lightning_pelt.profiles._errors import (
    MAX_NAMED,
    DamagedProfile,
    DamagedStore,
    UnknownProfile,
    and_more,
)
from lightning_pelt.profiles._row_codec import encode, id_error, is_version, require_profile
from lightning_pelt.profiles._schema import history, profiles
from lightning_pelt.profiles._shards import MANIFEST, ShardWriter, read_manifest, read_shard
from lightning_pelt.profiles.profile import Profile

__all__ = ["DamagedProfile", "DamagedStore", "ProfileStore", "UnknownProfile"]


class ProfileStore:
    """Profiles by id, with their earlier versions; all of one bank.

    SQLite and PostgreSQL have the same methods. Many processes can read while one writes; writers
    run one after another. Every write is a transaction: a process that is killed loses only its
    current transaction. (With SQLite, a power failure may lose the last transactions, but never
    damages the file.) Each row has a checksum of its id, version and content, which every read
    verifies.

    A store that this process may only read, a file or a server, can be read and served. Then
    methods that write raise a ``PermissionError``.

    Args:
        url: path of a SQLite file, created if it does not exist, or ``sqlite:///path``;
            ``postgresql://user@host/database`` for a server.

    Raises:
        ValueError: another kind of database; or a file that is not a store, is truncated, or lacks
            a table or a column.
        OSError: the file cannot be opened or created.
        ConnectionError: the server cannot be reached.
        ModuleNotFoundError: the extra ``profiles`` is not installed.

    Example:
        >>> import numpy as np
        >>> from tempfile import TemporaryDirectory
        >>> masks = np.zeros((2, 2, 8), dtype=bool)
        >>> masks[:, :, :3] = True
        >>> profile = Profile(masks, bank="0" * 64, scale=0.5)
        >>> with TemporaryDirectory() as folder, ProfileStore(f"{folder}/profiles.db") as store:
        ...     store.put("ann", profile)
        ...     store.get("ann") == profile
        ...     list(store.ids())
        1
        True
        ['ann']
    """

    def __init__(self, url: str | Path = "profiles.db") -> None:
        self._database = Database(url)
        self.name = self._database.name

    def __enter__(self) -> ProfileStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._database.engine.dispose()

    @property
    def bank(self) -> str | None:
        """Digest of the bank of all profiles; None before the first profile is put."""
        return self._database.bank

    def put(self, id: str, profile: Profile) -> int:
        """Store a new version of a profile; earlier versions are kept.

        Args:
            id: 1 to 200 characters.
            profile: a profile of the store's bank, which is the bank of the first profile.

        Returns:
            The number of the version: one more than the last one, or 1 for a new profile. After
            profiles have been deleted, a new one starts above their numbers.

        Raises:
            ValueError: the profile belongs to another bank, or ``id`` is invalid.
            PermissionError: the store is read-only.
            TimeoutError: another process has been writing for half a minute.
        """
        return _writing.put(self._database, {id: profile})[id]

    def put_many(self, items: Iterable[tuple[str, Profile]], progress: bool = False) -> int:
        """Store many profiles, ten thousand per transaction, or fewer if they are large.

        Returns:
            The number of stored profiles.

        Raises:
            ValueError: see :meth:`put`. Earlier transactions stay, the current one is undone.
        """
        written = 0
        for batch in _writing.transactions(tqdm(items, unit=" profiles", disable=not progress)):
            written += len(_writing.put(self._database, batch))
        return written

    def get(self, id: str, version: int | None = None) -> Profile:
        """Read a profile, by default its latest version.

        Raises:
            UnknownProfile: there is no such profile or version.
            DamagedProfile: the row differs from what was written.
        """
        if version is None:
            return self.get_many([id])[id]
        tables = (profiles, history) if id_error(id) is None else ()  # rows move to the history
        read = [one for table in tables for one in self._database.read(table, [id])]
        found = {number: profile for _, number, profile in read}
        damaged = [profile for profile in found.values() if isinstance(profile, str)]
        if version in found:
            return require_profile(id, found[version], self.name)
        if damaged:  # the version may be one of these
            raise DamagedProfile({id: damaged[0]}, self.name)
        raise UnknownProfile(
            f"the profile {id!r} in {self.name} has no version {version}: it has "
            f"{self.versions(id)}",
            [id],
        )

    def get_many(self, ids: Iterable[str]) -> dict[str, Profile]:
        """Read the latest version of each profile, in the order of ``ids``.

        Raises:
            UnknownProfile: some profiles do not exist; the error has all of their ids.
            DamagedProfile: some rows differ from what was written; the error has all of their ids.
        """
        wanted = list(dict.fromkeys(ids))
        read = self._database.read(profiles, [id for id in wanted if id_error(id) is None])
        found = {id: profile for id, _, profile in read if isinstance(profile, Profile)}
        if len(found) < len(read):
            bad = {id: why for id, _, why in read if isinstance(why, str)}
            raise DamagedProfile(bad, self.name)
        if len(found) < len(wanted):
            raise self._unknown([id for id in wanted if id not in found])
        return {id: found[id] for id in wanted}

    def latest(self, ids: Iterable[str]) -> dict[str, int]:
        """The number of the latest version of each profile; unknown ids are left out.

        Reads no masks. Caches can use it for keys of id and version.

        Raises:
            DamagedProfile: the version of a profile is not a number.
        """
        valid = [id for id in ids if id_error(id) is None]
        with self._database.reading() as connection:
            found = latest_versions(connection, valid)
        self._check_versions(found.items())
        return found

    def versions(self, id: str) -> list[int]:
        """The numbers of all versions of a profile, in increasing order.

        Raises:
            UnknownProfile: there is no such profile.
            DamagedProfile: a version is not a number.
        """
        if id_error(id) is not None:
            raise self._unknown([id])
        both = [select(table.c.version).where(table.c.id == id) for table in (profiles, history)]
        with self._database.reading() as connection:
            found = connection.execute(union_all(*both)).scalars().all()
        if not found:
            raise self._unknown([id])
        self._check_versions((id, version) for version in found)
        return sorted(found)

    def delete(self, id: str) -> None:
        """Delete a profile and all its versions; see :meth:`delete_many`."""
        self.delete_many([id])

    def delete_many(self, ids: Iterable[str]) -> None:
        """Delete profiles and all their versions, in one transaction.

        Nothing of them is left in a SQLite store, neither their ids nor the bytes of their rows. A
        PostgreSQL server frees the space of the rows, and may keep the bytes in its pages and logs.
        Exports and backups are other files. The numbers of the versions are not used again: the
        store keeps the largest number of all deleted profiles, and later profiles start above it.

        Raises:
            UnknownProfile: some profiles do not exist; the error has all of their ids, and nothing
                is deleted.
        """
        if missing := _writing.remove(self._database, list(ids)):
            raise self._unknown(missing)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and bool(self.latest([id]))

    def __len__(self) -> int:
        return self._database.count(profiles)

    def ids(self) -> Iterator[str]:
        """All ids, sorted by code points, read in pages of some thousands."""
        return self._database.ids(profiles)

    def iterate(self, batch: int = 1000) -> Iterator[tuple[str, Profile]]:
        """All ids and profiles in the order of :meth:`ids`, read in batches.

        No transaction stays open between two batches, so that other processes can write.

        Raises:
            DamagedProfile: the next profile is damaged.
            DamagedStore: some profiles have no readable id; all others have been returned.
        """
        _check_positive("batch", batch)
        for id, _, profile in self._database.iterate(profiles, batch):
            yield id, require_profile(id, profile, self.name)

    def verify(self, progress: bool = False) -> list[tuple[str, str]]:
        """Read all versions of all profiles.

        Returns:
            Id and damage of each damaged version. For SQLite, also the errors of its integrity
            check, with an empty id.
        """
        bad: list[tuple[str, str]] = []
        for table in (profiles, history):
            try:
                with tqdm(
                    total=self._database.count(table), unit=f" {table.name}", disable=not progress
                ) as bar:
                    for id, version, profile in self._database.iterate(table):
                        if isinstance(profile, str):
                            bad.append((id, f"version {version}: {profile}"))
                        bar.update()
            except DamagedStore as error:  # of the index of ids; rows can still be read by id
                bad.append(("", str(error)))
        return bad + [("", f"the file: {line}") for line in self._database.integrity_errors()]

    def export(
        self, folder: str | Path, rows_per_shard: int = 100_000, progress: bool = False
    ) -> Path:
        """Write the latest version of every profile to safetensors shards with a manifest.

        The manifest has the SHA-256 of every shard and is written last.

        Raises:
            FileExistsError: the folder already contains an export.
            ValueError: there is nothing to export.
            DamagedProfile: a row is damaged. The folder has no manifest then and cannot be
                imported.
        """
        _check_positive("rows_per_shard", rows_per_shard)
        folder = Path(folder)
        if (folder / MANIFEST).exists():
            raise FileExistsError(f"{folder} holds an export already: choose another folder")
        if self.bank is None:
            raise ValueError(f"{self.name} has no profiles to export")
        folder.mkdir(parents=True, exist_ok=True)
        writer = ShardWriter(folder, self.bank, rows_per_shard)
        rows = self._database.iterate(profiles)
        bar = tqdm(rows, total=len(self), unit=" profiles", disable=not progress)
        for id, version, profile in bar:
            writer.add((encode({id: require_profile(id, profile, self.name)})[0], version))
        writer.close()
        return folder

    def import_shards(self, folder: str | Path, progress: bool = False) -> int:
        """Store the profiles of an :meth:`export`, after all shards have been verified.

        Versions keep their numbers. A profile of which the store has the same or a later version
        is skipped.

        Returns:
            The number of stored profiles.

        Raises:
            FileNotFoundError: there is no manifest.
            ValueError: a shard is missing, truncated, changed or not a shard, and the message
                names it; or the export belongs to another bank.
        """
        bank, shards = read_manifest(Path(folder))
        written = 0
        for shard in tqdm(shards, unit=" shards", disable=not progress):
            for batch in chunks(read_shard(shard.path), _writing.TRANSACTION):
                written += _writing.restore(self._database, batch, bank, str(shard.path))
        return written

    def _check_versions(self, found: Iterable[tuple[str, object]]) -> None:
        wrong = {id: f"its version is {one!r}" for id, one in found if not is_version(one)}
        if wrong:
            raise DamagedProfile(wrong, self.name)

    def _unknown(self, ids: Sequence[str]) -> UnknownProfile:
        named = ", ".join(repr(id) for id in ids[:MAX_NAMED])
        return UnknownProfile(
            f"{self.name} has no profile {named}{and_more(ids)}: ids() lists the existing ones", ids
        )


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")
