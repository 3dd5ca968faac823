"""Mistakes of the user, as one line on stderr with exit status 2; other errors as a traceback."""

from __future__ import annotations

import dis
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_pelt.utils.urls import masked

DEBUG = "--debug"
# Errors of files, of packages that are not installed, and of options that Lightning refuses.
MISTAKES = (OSError, ModuleNotFoundError, MisconfigurationException)
# Packages that raise an error themselves when the user can correct it.
OWN = ("lightning_pelt", "lightning", "jsonargparse")
debugging: ContextVar[bool] = ContextVar("debugging", default=False)


@contextmanager
def one_line_errors(prog: str) -> Iterator[None]:
    """Print a mistake of the user in one line, and exit with status 2.

    While ``debugging`` is set, its traceback is printed before the line. Other errors pass.

    Args:
        prog: name of the command, at the start of the line.
    """
    try:
        yield
    except Exception as raised:
        error = _without_parser(raised)
        if not is_mistake(error):
            raise
        if debugging.get():
            traceback.print_exc()
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"{prog}: {masked(line)}", file=sys.stderr)
        raise SystemExit(2) from raised


def is_mistake(error: Exception) -> bool:
    """Whether the user can correct an error, rather than the authors of this package.

    An error of another library during a run may be a bug of ours. What this package or Lightning
    raises with a ``raise`` statement was foreseen.
    """
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("lightning_pelt"):
        return False
    if isinstance(error, MISTAKES):
        return True
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return False  # a process that died, not what it was asked to do
    return not isinstance(error, AssertionError | NotImplementedError) and _foreseen(error)


def _foreseen(error: Exception) -> bool:
    """Whether a ``raise`` statement of an own package raised the error."""
    last = _innermost(error)
    if last is None or _package(last) not in OWN:
        return False
    code = last.tb_frame.f_code.co_code
    return dis.opname[code[last.tb_lasti]] == "RAISE_VARARGS"


def _without_parser(error: Exception) -> Exception:
    """The error of a constructor or of a link, which jsonargparse reports in one of its own."""
    last = _innermost(error)
    wrapped = last is not None and _package(last) == "jsonargparse"
    return (
        _without_parser(error.__cause__)
        if wrapped and isinstance(error.__cause__, Exception)
        else error
    )


def _innermost(error: Exception) -> TracebackType | None:
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last


def _package(place: TracebackType) -> str:
    return str(place.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
