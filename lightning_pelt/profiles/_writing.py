"""Transactions that write profiles to a store's database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from lightning_pelt.profiles._engine import (
    QUERY,
    RETIRED,
    Database,
    bank_of,
    chunks,
    latest_versions,
    replace_rows,
    retired_version,
)
from lightning_pelt.profiles._errors import UNCHANGED, DamagedProfile
from lightning_pelt.profiles._row_codec import (
    EncodedProfile,
    check_ids,
    check_rows,
    encode,
    id_error,
    is_version,
    make_row,
)
from lightning_pelt.profiles._schema import history, info, profiles
from lightning_pelt.profiles.profile import Profile

TRANSACTION = 10_000  # profiles of one transaction
TRANSACTION_BYTES = 2**26  # of one transaction with larger profiles


def put(database: Database, items: Mapping[str, Profile]) -> dict[str, int]:
    """Write new versions of profiles in one transaction.

    Returns:
        The number of the new version of each profile.

    Raises:
        ValueError: an id is invalid, or a profile belongs to another bank.
    """
    check_ids(items, database.name)
    versions: dict[str, int] = {}
    with database.writing() as connection:
        _check_bank(connection, database.name, {id: one.bank for id, one in items.items()})
        for batch in chunks(items.items(), QUERY):
            versions |= _put_batch(connection, dict(batch), database.name)
    return versions


def restore(
    database: Database, given: Sequence[tuple[EncodedProfile, int]], bank: str, source: str
) -> int:
    """Write profiles with the numbers of their versions, except if the database has later ones.

    Args:
        database: of a store.
        given: profiles of ``source`` with the numbers of their versions.
        bank: digest of their bank.
        source: where they are from, for messages.

    Returns:
        The number of written profiles.

    Raises:
        ValueError: an id is invalid, or the database has another bank.
        DamagedProfile: a profile could not be read after it was written.
    """
    check_ids((one.id for one, _ in given), source)
    rows = [make_row(one, version, bank) for one, version in given]
    check_rows(rows, bank, source)
    with database.writing() as connection:
        _check_bank(connection, database.name, {one.id: bank for one, _ in given})
        ids = [one.id for one, _ in given]
        before = last_versions(connection, ids)
        rows = [row for row in rows if row["version"] > before.get(row["id"], 0)]
        replace_rows(connection, rows, [row["id"] for row in rows if row["id"] in before])
    return len(rows)


def remove(database: Database, ids: Sequence[str]) -> list[str]:
    """Delete profiles with all their versions, in one transaction, unless some do not exist.

    Returns:
        The ids that do not exist.

    Raises:
        OSError: nothing was changed; or the profiles are deleted, and the bytes of their rows could
            not be removed. The message says which.
    """
    with database.writing() as connection:
        last = last_versions(connection, [id for id in ids if id_error(id) is None])
        if len(last) < len(set(ids)):
            return [id for id in dict.fromkeys(ids) if id not in last]
        for batch in chunks(last, QUERY):
            for table in (profiles, history):
                connection.execute(delete(table).where(table.c.id.in_(batch)))
        retired = max(retired_version(connection, database.name), *last.values())
        connection.execute(delete(info).where(info.c.key == RETIRED))
        connection.execute(insert(info).values(key=RETIRED, value=str(retired)))
    try:
        database.erase()
    except OSError as error:
        reason = str(error).removesuffix(f": {UNCHANGED}")
        raise OSError(
            f"the profiles are deleted, and the bytes of their rows may be in {database.name} "
            f"until the next deletion, since they could not be removed: {reason}"
        ) from error
    return []


def last_versions(connection: Connection, ids: Iterable[str]) -> dict[str, int]:
    """The number of the latest version of each profile; one more than the last if it is damaged."""
    found = latest_versions(connection, ids)
    for id in [id for id, version in found.items() if not is_version(version)]:
        earlier = connection.execute(select(history.c.version).where(history.c.id == id)).scalars()
        found[id] = 1 + max(filter(is_version, earlier), default=0)
    return found


def transactions(items: Iterable[tuple[str, Profile]]) -> Iterator[dict[str, Profile]]:
    """Batches of limited size without repeated ids, since a repetition is another version."""
    batch: dict[str, Profile] = {}
    size = 0
    for id, profile in items:
        if id in batch or len(batch) == TRANSACTION or size > TRANSACTION_BYTES:
            yield batch
            batch, size = {}, 0
        batch[id] = profile
        size += _bytes_in_memory(profile)
    if batch:
        yield batch


def _check_bank(connection: Connection, name: str, banks: Mapping[str, str]) -> None:
    """Raise for profiles, given by id and digest, of another bank; the first sets the bank."""
    bank = bank_of(connection, name)
    if bank is None:
        bank = next(iter(banks.values()))
        connection.execute(insert(info).values(key="bank", value=bank))
    for id, digest in banks.items():
        if digest != bank:
            raise ValueError(
                f"the profile {id!r} belongs to the bank {digest}, and {name} has profiles of the "
                f"bank {bank}: use another store, or train the profile on the bank of this store"
            )


def _put_batch(connection: Connection, items: dict[str, Profile], name: str) -> dict[str, int]:
    """Put some hundreds of profiles; with thousands, Python's garbage collector takes long."""
    before = last_versions(connection, items)
    first = retired_version(connection, name)
    wrong = {id: f"its last version is {one!r}" for id, one in before.items() if not _has_next(one)}
    if wrong:
        raise DamagedProfile(wrong, name)
    versions = {id: 1 + before.get(id, first) for id in items}
    bank = next(iter(items.values())).bank
    rows = [make_row(one, versions[one.id], bank) for one in encode(items)]
    replace_rows(connection, rows, list(before))
    return versions


def _has_next(version: Any) -> bool:
    return is_version(version) and is_version(version + 1)


def _bytes_in_memory(profile: Profile) -> int:
    arrays = [profile.masks, profile.norm, *(profile.head or {}).values()]
    return sum(array.nbytes for array in arrays if array is not None)
