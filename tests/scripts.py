"""Scripts of tests: in forks of a server that has imported the package, or as new processes."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import mkstemp
from types import ModuleType
from typing import Any

import processes

SECONDS = 240  # of a script


def run_script(
    script: ModuleType, *arguments: str, ranks: int = 1, launcher: Sequence[str] = ()
) -> None:
    """Run a module as a script.

    Args:
        script: the module, with a ``main``.
        arguments: of the script.
        ranks: processes that run it. If there are several, they have the environment that tells
            Lightning the rank of each, as a launcher on one machine gives it.
        launcher: options of Python in front of the script, such as ``-m`` and a launcher, which
            runs in a new process.
    """
    if launcher:
        status, output = output_of([*launcher, str(script.__file__), *arguments])
    else:
        status, output = _forked(_main, (script.__name__,), [script.__name__, *arguments], ranks)
    assert status == 0, output[-5000:]


def output_of_file(file: Path, *arguments: str) -> tuple[int | None, str]:
    """Status and output of a script that is a file, in a process that has the package imported."""
    return _forked(runpy.run_path, (str(file), None, "__main__"), [str(file), *arguments], ranks=1)


def output_of_module(module: str, *arguments: str) -> tuple[int | None, str]:
    """The same for ``python -m module arguments``."""
    return _forked(runpy.run_module, (module, None, "__main__"), [module, *arguments], ranks=1)


def _main(name: str) -> None:
    import_module(name).main()


def _forked(
    target: Callable[..., Any], args: tuple[Any, ...], argv: list[str], ranks: int
) -> tuple[int | None, str]:
    """As ``output_of``; the status is that of the first rank that has ended with another than 0."""
    server, port = processes.context(), _free_port()
    number, name = mkstemp(prefix="output-")
    os.close(number)
    environments = [_environment(rank, ranks, port) for rank in range(ranks)]
    started = [
        server.Process(target=_run, args=(target, args, argv, environment, name))
        for environment in environments
    ]
    try:
        for process in started:
            process.start()
        status = _status(started)
    finally:
        for process in started:
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
                process.kill()  # it may not lead its group yet
                process.join()
    output = Path(name).read_text(encoding="utf-8", errors="replace")
    Path(name).unlink()
    return status, output + ("" if status is not None else f"\nnot ended within {SECONDS} seconds")


def _run(
    target: Callable[..., Any],
    args: tuple[Any, ...],
    argv: list[str],
    environment: Mapping[str, str],
    file: str,
) -> None:
    os.setsid()
    number = os.open(file, os.O_WRONLY | os.O_APPEND)
    os.dup2(number, 1)
    os.dup2(number, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
    os.environ.clear()  # the server has that of its start
    os.environ.update(environment)
    sys.argv = argv
    target(*args)


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """This process's, and the place of a rank."""
    if ranks == 1:
        return {**os.environ}
    place = {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
    return {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _status(started: Sequence[BaseProcess]) -> int | None:
    """0 if all end with it; otherwise that of the first that does not, as others may hang then."""
    end = time.monotonic() + SECONDS
    running: dict[Any, BaseProcess] = {process.sentinel: process for process in started}
    while running:
        ended = wait([*running], timeout=max(0.0, end - time.monotonic()))
        if not ended:
            return None
        for sentinel in ended:
            process = running.pop(sentinel)
            process.join()
            if process.exitcode:
                return process.exitcode
    return 0


def output_of(arguments: Sequence[str]) -> tuple[int | None, str]:
    """Status and output of a new Python with ``arguments``; None is the status after ``SECONDS``.

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
