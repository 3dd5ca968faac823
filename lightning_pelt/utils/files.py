"""Files: atomic writes, and errors that name the file."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where readers and writers of a folder do not wait for each other
    fcntl = None  # type: ignore[assignment]


def write_aside(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file completely, or leave ``path`` as it is.

    ``write`` fills a temporary file in the same folder, whose name is unique among threads and
    processes. The temporary file is flushed to the disk and then replaces ``path``. If a step
    fails, the temporary file is deleted. The file gets the permissions of any new file, even where
    ``write`` sets others.

    Args:
        path: the file to create or replace.
        write: writes the content to the path that it is given.
    """
    write_together({path: write})


def write_together(files: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Write files of one folder completely, or leave all of them as they are.

    Every file is complete before the first one is replaced. See :func:`write_aside`.

    Args:
        files: what writes the content of each file.
    """
    asides = {path: path.with_name(f".{path.name}.{secrets.token_hex(8)}.part") for path in files}
    try:
        for path, write in files.items():
            _write(asides[path], write)
        with locked(next(iter(files)).parent):
            for path, aside in asides.items():
                aside.replace(path)
    except BaseException:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
        raise


def _write(aside: Path, write: Callable[[Path], Any]) -> None:
    aside.touch(exist_ok=False)  # a new file follows the umask, or the folder's access list
    mode = aside.stat().st_mode
    write(aside)
    if aside.stat().st_mode != mode:
        aside.chmod(mode)
    with aside.open("rb") as file:
        os.fsync(file.fileno())


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
