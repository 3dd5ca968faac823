"""Atomic file writes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_aside(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file completely, or leave ``path`` as it is.

    ``write`` fills a temporary file in the same folder. The temporary file is flushed to the disk
    and then replaces ``path``. If a step fails, the temporary file is deleted.

    Args:
        path: the file to create or replace.
        write: writes the content to the path that it is given.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
