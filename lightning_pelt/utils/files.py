"""Files: atomic writes, and errors that name the file."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_pelt.utils.text import readable_bytes

try:
    import fcntl
except ImportError:  # Windows, where readers and writers of a folder do not wait for each other
    fcntl = None  # type: ignore[assignment]

OTHER_HOSTS = 3600  # seconds after which the temporary folder of another host is a leftover
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP}  # of file systems that cannot flush a folder
_ASIDE = re.compile(r"\.([0-9a-f]{8})[0-9a-f]{8}\.part")
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")  # in the messages of safetensors


def write_aside(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file completely, or leave ``path`` as it is.

    ``write`` fills a file in a temporary folder beside ``path``. The file and its name are flushed
    to the disk; between the two, the file replaces ``path``. If a step fails, the temporary folder
    is deleted. If the process is killed, the next write into the folder deletes it. The file gets
    the permissions of any new file, even where ``write`` sets others.

    Args:
        path: the file to create or replace.
        write: writes the content to the path that it is given.

    Raises:
        OSError: the disk is full or not writable. The error names ``path`` and the free space.
    """
    write_together({path: write})


def write_together(files: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Write files of one folder completely, or leave all of them as they are.

    Every file is complete before the first one is replaced. See :func:`write_aside`.

    Args:
        files: what writes the content of each file.
    """
    current = first = next(iter(files))
    try:
        with _temporary_folder(first.parent) as aside:
            for current, write in files.items():
                _write(aside / current.name, write)
            with locked(first.parent):
                for path in files:
                    (aside / path.name).replace(path)
                _sync_folder(first.parent)
    except Exception as error:
        named = _named(error, current)
        if named is None:
            raise
        raise named from error


def _write(aside: Path, write: Callable[[Path], Any]) -> None:
    aside.touch(exist_ok=False)  # a new file follows the umask, or the folder's access list
    mode = aside.stat().st_mode
    write(aside)
    if aside.stat().st_mode != mode:
        aside.chmod(mode)
    with aside.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Flush the names of files: after a power failure, a name is that of the old or new file."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """A folder in ``folder``, locked while this process lives, and deleted in the end.

    A folder, since libraries replace the file that they write, or write another one beside it.
    """
    _delete_leftovers(folder)
    aside, lock = _locked_folder(folder)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked_folder(folder: Path) -> tuple[Path, int | None]:
    while True:
        aside = folder / f".{_host()}{secrets.token_hex(4)}.part"
        aside.mkdir()
        if fcntl is None:
            return aside, None
        with suppress(FileNotFoundError):
            lock = os.open(aside, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            if aside.exists():  # else another writer has taken it for a leftover
                return aside, lock
            os.close(lock)


def _delete_leftovers(folder: Path) -> None:
    """Delete the temporary folders of killed writers, whose locks the kernel has released."""
    if fcntl is None:
        return
    with os.scandir(folder) as entries:
        asides = [entry for entry in entries if _ASIDE.fullmatch(entry.name)]
    for entry in asides:
        with suppress(OSError):  # it is locked, gone, or of another user; or there are no locks
            # Some network file systems do not show the locks of other hosts.
            here = entry.name.startswith(f".{_host()}")
            if here or time.time() - entry.stat().st_mtime > OTHER_HOSTS:
                _delete_unlocked(entry.path)


def _delete_unlocked(folder: str) -> None:
    lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


@contextmanager
def naming_disk(path: Path) -> Iterator[None]:
    """Let errors of the disk that name no file name ``path``, and a full disk its free space."""
    try:
        yield
    except OSError as error:
        named = _named(error, path)
        if named is None:
            raise
        raise named from error


def _named(error: Exception, path: Path) -> OSError | None:
    """An error of the disk with ``path``, unless it names a file outside the temporary folder.

    The errors of libraries in Rust are errors of the disk too, if they have a number.
    """
    number, name = _errno(error), getattr(error, "filename", None)
    inside = name is None or any(map(_ASIDE.fullmatch, Path(os.fsdecode(name)).parts))
    if number is None or not inside:
        return None
    what = os.strerror(number)
    if number in _FULL:
        what += f" ({free_space(path)} free, what was there is unchanged)"
    return OSError(number, what, str(path))


def free_space(path: Path) -> str:
    """What is free on the disk of a file, such as ``1.5 MiB``."""
    return readable_bytes(shutil.disk_usage(path.parent).free)


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    match = _RUST_ERRNO.search(str(error))
    return int(match[1]) if match else None


@contextmanager
def locked(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Wait until no other thread or process replaces files in ``folder`` together.

    Nothing is locked where the file system has no locks.

    Args:
        folder: must exist.
        shared: for readers, which do not wait for each other.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # releases the lock


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Turn what the data of a file raises into a ``ValueError`` that names the file."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {error}") from error
    except OSError:
        raise
    except Exception as error:  # values that no constructor expects may raise anything
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
