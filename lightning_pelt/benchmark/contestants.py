"""What is measured: plans of this package, and methods of other libraries, a process each."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from lightning_pelt.benchmark.plans import preparation
from lightning_pelt.benchmark.timing import Setting, StepTime, TimedTraining, memory

PEERS = Path(__file__).with_name("peers.py")

Result = TypeVar("Result")
_training: TimedTraining | None = None  # the plan of this worker process


class Worker:
    """A separate process that runs functions one after another."""

    def __init__(self) -> None:
        # Forked from a server that has imported everything and run nothing: processes start fast
        # and in the same state. A fork of this process would inherit its threads and peak memory.
        method = "spawn" if sys.platform == "win32" else "forkserver"
        context = multiprocessing.get_context(method)
        context.set_forkserver_preload(["lightning_pelt.benchmark.contestants"])
        self._pool = ProcessPoolExecutor(1, mp_context=context)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        return self._pool.submit(function, *args, **kwargs).result()


class Contestant(ABC):
    """One method in a process: either its memory is measured, or it is built and then timed.

    Args:
        name: of the method.
        setting: the model and its batches.
    """

    def __init__(self, name: str, setting: Setting) -> None:
        self.name, self.setting = name, setting

    def __enter__(self) -> Contestant:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None:
        """End the process."""

    @abstractmethod
    def memory(self) -> int:
        """Peak bytes of training steps above the idle model."""

    @abstractmethod
    def build(self) -> None:
        """Make the model and its optimizer."""

    @abstractmethod
    def time_steps(self, steps: int) -> StepTime:
        """The mean over ``steps`` training steps of the model that was built."""


class OwnPlan(Contestant):
    """A plan of this package; ``name`` is its key in ``PLANS``."""

    def __init__(self, name: str, setting: Setting) -> None:
        super().__init__(name, setting)
        self._worker = Worker()

    def __exit__(self, *_: object) -> None:
        self._worker.__exit__()

    def memory(self) -> int:
        return self._worker.run(_memory, self.name, self.setting)

    def build(self) -> None:
        self._worker.run(_build, self.name, self.setting)

    def time_steps(self, steps: int) -> StepTime:
        return self._worker.run(_time_steps, steps)


def _memory(name: str, setting: Setting) -> int:
    return memory(preparation(name), setting)


def _build(name: str, setting: Setting) -> None:
    global _training
    _training = TimedTraining(preparation(name), setting)


def _time_steps(steps: int) -> StepTime:
    assert _training is not None
    return _training.time_steps(steps)


class PeerMethod(Contestant):
    """A method of another library, in an environment that has it.

    Args:
        name: ``LIBRARY:METHOD``, where the method is a key of ``PLANS`` too.
        setting: the model and its batches.
        python: the Python of the environment.
    """

    def __init__(self, name: str, setting: Setting, *, python: str) -> None:
        super().__init__(name, setting)
        self._process = subprocess.Popen(
            [python, str(PEERS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def memory(self) -> int:
        return self._ask("memory", name=self.name, setting=asdict(self.setting))

    def build(self) -> None:
        self._ask("build", name=self.name, setting=asdict(self.setting))

    def time_steps(self, steps: int) -> StepTime:
        return StepTime(**self._ask("time_steps", steps=steps))

    def _ask(self, what: str, **values: Any) -> Any:
        """The answer of the process.

        Raises:
            RuntimeError: the library cannot do it; the message is that of its error.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"what": what, **values}) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline() or "{}")
        except OSError:
            answer = {}
        if "result" not in answer:
            raise RuntimeError(f"{self.name}: {answer.get('error', 'the process has ended')}")
        return answer["result"]


def peers_of(python: str) -> dict[str, list[str]]:
    """The methods of the libraries in an environment, by library and version.

    Args:
        python: the Python of the environment.

    Raises:
        OSError: there is no such file, or it cannot be run.
        ValueError: it is not a Python with torch and transformers.
    """
    done = subprocess.run([python, str(PEERS), "--list"], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no message").splitlines()[-1]
        raise ValueError(f"{python} cannot run the benchmark: {reason}")
    listed: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return listed
