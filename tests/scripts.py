"""Scripts of tests that start further processes of themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import ModuleType


def run_script(script: ModuleType, *arguments: str, launcher: Sequence[str] = ()) -> None:
    """Run a module as a script; a strategy starts its second process by running it again.

    Args:
        script: the module.
        arguments: of the script.
        launcher: options of Python in front of the script, such as ``-m`` and a launcher.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, *launcher, str(script.__file__), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:  # both processes: one may wait for the other for ever
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-5000:]
