"""Errors of a store, which name it; the errors of database drivers become these."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from lightning_pelt.utils.files import free_space

MAX_NAMED = 10  # ids that a message names
REMEDY = "import_shards() of an export restores all of its profiles in a new store"
# Parts of SQLite's messages (Python 3.10 has no error codes) and PostgreSQL's SQLSTATEs.
_READ_ONLY = ("readonly database", "42501", "25006")
_BUSY = ("is locked", "55P03", "57014")
UNCHANGED = "nothing was changed"
_FULL = ("is full", "53100")
_NOT_OPEN = ("unable to open", "disk I/O", "out of memory")
_UNREACHABLE = ("08", "57P", "53", "28", "3D")


class UnknownProfile(KeyError):
    """The store does not have some profiles, or some versions of one.

    Attributes:
        ids: of the profiles.

    Example:
        >>> UnknownProfile("the store has no profile 'ann'", ["ann"]).ids
        ('ann',)
    """

    def __init__(self, message: str, ids: Sequence[str]) -> None:
        super().__init__(message, tuple(ids))  # the arguments with which it is unpickled

    @property
    def ids(self) -> tuple[str, ...]:
        return self.args[1]

    def __str__(self) -> str:
        return self.args[0]  # a KeyError shows its repr


class DamagedProfile(ValueError):
    """Some rows differ from what was written; all other profiles can be read.

    Attributes:
        reasons: the damage, by id.
        store: name of the store.

    Example:
        >>> DamagedProfile({"ann": "its checksum does not match"}).reasons
        {'ann': 'its checksum does not match'}
    """

    def __init__(self, reasons: Mapping[str, str], store: str = "") -> None:
        super().__init__(dict(reasons), store)  # the arguments with which it is unpickled

    @property
    def reasons(self) -> dict[str, str]:
        return self.args[0]

    @property
    def store(self) -> str:
        return self.args[1]

    def __str__(self) -> str:
        named = "; ".join(f"{id!r}: {why}" for id, why in islice(self.reasons.items(), MAX_NAMED))
        where = f"damaged in {self.store}" if self.store else "damaged"
        return (
            f"{where}: {named}{and_more(self.reasons)}. Put the profile again or delete it; all "
            "other profiles can be read, and verify() lists the damaged ones"
        )


class DamagedStore(ValueError):
    """A file is not a database, or a damaged one; or a database lacks a part of a store.

    Example:
        >>> from pathlib import Path
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


def and_more(items: Sequence[str] | Mapping[str, str]) -> str:
    """The number of items that a message does not name."""
    return f" and {len(items) - MAX_NAMED} more" if len(items) > MAX_NAMED else ""


def read_only(name: str) -> PermissionError:
    """The error of a write to a store that this process may only read."""
    return PermissionError(
        f"{name} is read-only for this process: its profiles can be read and served; to write, get "
        "write access to it (for a file, also to its folder)"
    )


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Turn the errors of database drivers into errors that name the store and the remedy.

    Raises:
        DamagedStore: a page, a table, a column or a value is damaged.
        PermissionError: the database is read-only.
        TimeoutError: another process has been writing for too long.
        OSError: the disk is full, or the file cannot be opened.
        ConnectionError: the server cannot be reached.
    """
    try:
        yield
    except (DBAPIError, sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
        original = error.orig if isinstance(error, DBAPIError) else error
        assert original is not None
        raise _named(name, original) from error


def _named(name: str, error: BaseException) -> Exception:
    """The error of a store for an error of sqlite3 or psycopg."""
    file = isinstance(error, sqlite3.Error | OverflowError | UnicodeDecodeError)
    found = str(error) if file else str(getattr(error, "sqlstate", None))

    def is_one_of(parts: Sequence[str]) -> bool:
        return any(part in found if file else found.startswith(part) for part in parts)

    if is_one_of(_READ_ONLY):
        return read_only(name)
    if is_one_of(_BUSY):
        return TimeoutError(f"{name} is in use by another process ({error}): try again later")
    if is_one_of(_FULL):
        free = f" ({free_space(Path(name))} free)" if file else ""
        return OSError(f"{name} cannot be written, its disk is full{free}: {UNCHANGED}")
    if file and is_one_of(_NOT_OPEN):
        return OSError(f"{name} cannot be read or written ({error})")
    lost = type(error).__name__ == "OperationalError" and found == "None"
    if not file and (lost or is_one_of(_UNREACHABLE)):
        return ConnectionError(f"{name} cannot be reached: {error}")
    return DamagedStore(f"{name} is damaged ({error}): {REMEDY}")
