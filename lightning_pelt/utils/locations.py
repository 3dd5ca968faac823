"""Write a file to a path or to a URL of fsspec, such as the folder of a run."""

from __future__ import annotations

from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from lightning_pelt.utils.files import write_aside


def write_bytes(location: str | Path, content: bytes) -> None:
    """Write ``content``; missing folders are made. Local files are replaced atomically.

    Args:
        location: a path, or a URL of fsspec.
        content: of the file.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import fsspec
        >>> write_bytes("memory://runs/notes.txt", b"seed 3")
        >>> fsspec.open("memory://runs/notes.txt").open().read()
        b'seed 3'
    """
    files, inside = url_to_fs(str(location))
    if isinstance(files, LocalFileSystem):
        local = Path(inside)
        local.parent.mkdir(parents=True, exist_ok=True)
        write_aside(local, lambda aside: aside.write_bytes(content))
        return
    files.makedirs(files._parent(inside), exist_ok=True)
    with files.open(inside, "wb") as file:
        file.write(content)
