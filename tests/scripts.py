"""Scripts of tests that start further processes of themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType

SECONDS = 240  # of a script


def run_script(script: ModuleType, *arguments: str, launcher: Sequence[str] = ()) -> None:
    """Run a module as a script; a strategy starts its second process by running it again.

    Args:
        script: the module.
        arguments: of the script.
        launcher: options of Python in front of the script, such as ``-m`` and a launcher.
    """
    status, output = output_of([*launcher, str(script.__file__), *arguments])
    assert status == 0, output[-5000:]


def output_of(arguments: Sequence[str]) -> tuple[int | None, str]:
    """Status and output of Python with ``arguments``; the status is None after ``SECONDS``.

    No process that it has started is left: one may wait for another for ever.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        return _finished(process)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _finished(process: subprocess.Popen[str]) -> tuple[int | None, str]:
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return None, f"did not end within {SECONDS} seconds"
    return process.returncode, output
