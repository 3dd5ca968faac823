"""Errors that the user can correct, as a line on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

CORRECTABLE = (ValueError, OSError, ModuleNotFoundError, MisconfigurationException)


@contextmanager
def one_line_errors(prog: str, *more: type[Exception]) -> Iterator[None]:
    """Print errors that the user can correct in one line and exit with status 2.

    Args:
        prog: name of the command, at the start of the line.
        more: errors besides ``CORRECTABLE``.
    """
    correctable: tuple[type[Exception], ...] = (*CORRECTABLE, *more)
    try:
        yield
    except correctable as error:
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from error
