"""Worker processes on this machine, started and stopped by the controller."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from types import TracebackType

from lightning_pelt.utils.urls import masked

DEATHS = 3  # consecutive deaths per worker, without a finished job, that end the search


class WorkerPool:
    """Worker processes that live as long as a ``with`` block; killed ones are replaced.

    Args:
        size: number of workers; 0 leaves the work to processes started elsewhere.
        command: starts one worker.
    """

    def __init__(self, size: int, command: Sequence[str]) -> None:
        self.size, self.command = size, command
        self._workers: list[subprocess.Popen[bytes]] = []
        self._deaths = 0
        self._finished = 0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def alive(self) -> int:
        """Number of workers that run."""
        return sum(worker.poll() is None for worker in self._workers)

    def refill(self, finished: int) -> None:
        """Start the workers that are missing.

        Args:
            finished: number of finished jobs in the ledger.

        Raises:
            RuntimeError: workers die repeatedly and no job is finished.
        """
        alive = [worker for worker in self._workers if worker.poll() is None]
        if finished > self._finished:
            self._finished, self._deaths = finished, 0
        self._deaths += len(self._workers) - len(alive)
        if self._deaths > DEATHS * self.size:
            raise RuntimeError(
                f"{self._deaths} workers have died in a row without finishing a job: start one by "
                f"hand to see why, {masked(' '.join(self.command))}"
            )
        self._workers = alive
        while len(self._workers) < self.size:
            self._workers.append(subprocess.Popen(self.command, stdin=subprocess.DEVNULL))

    def stop(self, timeout: float = 60.0) -> None:
        """Ask all workers to return their jobs and exit; kill those that do not in time."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            try:
                worker.wait(timeout)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
