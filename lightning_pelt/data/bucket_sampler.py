"""Batches of rows of similar length, equal for any number of processes and resumable."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch import distributed
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

POOL = 50  # number of batches whose rows are sorted together: saves padding, still mixes rows


class BucketSampler(DistributedSampler):
    """Yields batches of rows of similar length, as lists of row indices.

    Shuffled (training): the rows are permuted, sorted by length within pools of fifty batches, cut
    into *global* batches of ``batch_size * num_replicas`` rows, and the batches are permuted. All
    of this follows from ``(seed, epoch)``. Rank r takes the rows r, r + num_replicas, ... of each
    global batch, so two processes with ``batch_size=b`` see at each step the rows that one process
    with ``batch_size=2b`` sees. If the short batch of an epoch does not divide evenly among the
    processes, it repeats its first rows, so that all ranks have the same weight in the mean
    gradient.

    Not shuffled (evaluation): longest rows first, in batches of nearly equal size. Each row is
    seen once. Only if a batch has fewer rows than there are processes is one row repeated, because
    every rank must take the same number of steps.

    With equal ``lengths`` this is plain shuffling, or the original order.

    The sampler yields whole batches: pass it as ``DataLoader(sampler=..., batch_size=None)``.
    Lightning does not replace a ``DistributedSampler`` and calls its ``set_epoch``.

    Args:
        lengths: number of tokens of each row.
        batch_size: rows per process and batch.
        shuffle: whether batches are random in each epoch.
        seed: of the shuffling.
        num_replicas: number of processes; by default that of torch.distributed, or 1.
        rank: of this process; by default that of torch.distributed, or 0.

    Raises:
        ValueError: ``batch_size`` is below 1.

    Example:
        >>> sampler = BucketSampler([3, 9, 4, 8, 5, 2], batch_size=2, shuffle=False)
        >>> list(sampler)
        [[1, 3], [4, 2], [0, 5]]
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        running = distributed.is_available() and distributed.is_initialized()
        if num_replicas is None:
            num_replicas = distributed.get_world_size() if running else 1
        if rank is None:
            rank = distributed.get_rank() if running else 0
        self.lengths = np.asarray(lengths, dtype=np.int64)
        super().__init__(
            self.lengths,  # type: ignore[arg-type]  # only its length matters
            num_replicas=num_replicas,
            rank=rank,
            shuffle=shuffle,
            seed=seed,
        )
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        self.batch_size = batch_size
        self.start = 0

    @property
    def global_batch_size(self) -> int:
        """Number of rows of all processes in one step."""
        return self.batch_size * self.num_replicas

    def __len__(self) -> int:
        """Number of batches in an epoch: equal on every rank, also in a resumed epoch."""
        return -(-len(self.lengths) // self.global_batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches from ``start`` on; the next iteration starts from the first batch."""
        start, self.start = self.start, 0
        for batch in islice(self.global_batches(), start, None):
            yield self._share(batch).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; a new epoch starts with its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def global_batches(self) -> list[np.ndarray]:
        """The rows of all processes, one array per step."""
        rows, size = len(self.lengths), self.global_batch_size
        if not self.shuffle:
            order = np.argsort(-self.lengths, kind="stable")
            return np.array_split(order, len(self)) if rows else []
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(rows)
        batches: list[np.ndarray] = []
        for begin in range(0, rows, POOL * size):
            pool = order[begin : begin + POOL * size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        return [batches[i] for i in random.permutation(len(batches))]

    def _share(self, batch: np.ndarray) -> np.ndarray:
        replicas = self.num_replicas
        if self.shuffle:
            batch = np.resize(batch, -(-len(batch) // replicas) * replicas)
        share = batch[self.rank :: replicas]
        return share if len(share) else batch[:1]


class ResumableLoader(DataLoader):
    """A ``DataLoader`` over a :class:`BucketSampler` that resumes in the middle of an epoch.

    Lightning stores ``state_dict()`` in its checkpoints and restores it before it creates the first
    iterator. In a fit the trainer decides which epoch's batches come, and from which one on a
    resumed epoch continues, so that a batch whose step failed is repeated. Without a trainer the
    state counts the yielded batches.

    Attributes:
        position: returns the epoch and the number of its complete batches; called before the first
            batch of an iteration.
    """

    sampler: BucketSampler
    # Class attributes: Lightning may rebuild the loader from the arguments of its `__init__`.
    position: Callable[[], tuple[int, int]] | None = None
    _resumed = False
    _yielded = 0
    _yielded_epoch = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        resumed, self._resumed = self._resumed, False
        return self._batches(resumed)

    def _batches(self, resumed: bool) -> Iterator[Any]:
        # A generator, so that workers start and the position is read at the first batch. Lightning
        # creates the iterator before it restarts its loops and calls `set_epoch`.
        if self.position is not None:
            self.sampler.epoch, done = self.position()
            self.sampler.start = _within(done, len(self.sampler)) if resumed else 0
        self._yielded, self._yielded_epoch = self.sampler.start, self.sampler.epoch
        for batch in super().__iter__():
            self._yielded += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, its number of yielded batches, and the sizes that must match on resuming."""
        current = self._yielded_epoch == self.sampler.epoch
        return {
            "epoch": self.sampler.epoch,
            "batches": self._yielded if current else self.sampler.start,
            "global_batch_size": self.sampler.global_batch_size,
            "rows": len(self.sampler.lengths),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Have the next iterator continue after the batches that ``state`` counts."""
        here = self.state_dict()
        for key in ("global_batch_size", "rows"):
            if state[key] != here[key]:
                warnings.warn(
                    f"resuming in the middle of an epoch with {key} {here[key]}, but the "
                    f"checkpoint had {state[key]}: the remaining batches repeat some rows and miss "
                    "others. Keep the data, and batch_size times the number of processes.",
                    stacklevel=2,
                )
        self._resumed = True
        self.sampler.epoch = self._yielded_epoch = state["epoch"]
        self.sampler.start = self._yielded = state["batches"]


def _within(done: int, length: int) -> int:
    """The place in a loader that starts again when it ends before another of a CombinedLoader."""
    return done % length if done > length else done
