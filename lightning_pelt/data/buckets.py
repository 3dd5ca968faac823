"""Batches of rows of similar length, the same for any number of processes, resumable anywhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch import distributed
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

POOL = 50  # batches that are sorted by length together: enough to save padding, few enough to mix


class BucketSampler(DistributedSampler):
    """Yields batches, as lists of row numbers, whose rows are of similar length.

    Shuffled (training): the rows are permuted, sorted by length within pools of fifty batches, cut
    into *global* batches of ``batch_size * num_replicas`` rows, and the batches permuted. All of it
    follows from ``(seed, epoch)``. Rank r takes rows r, r + num_replicas, ... of each global batch,
    so that two processes with ``batch_size=b`` see at each step the rows that one process with
    ``batch_size=2b`` sees. The one short batch of an epoch repeats its first rows where they do not
    divide among the processes: ranks then weigh equally in the mean of their gradients.

    Not shuffled (evaluation): longest rows first, in batches of nearly equal size. Each row is
    seen once; only with fewer rows than processes in a batch is one repeated, since every rank
    must take the same number of steps.

    With equal ``lengths`` this is plain shuffling, or the rows in their order.

    It hands out whole batches, so it goes to ``DataLoader(sampler=..., batch_size=None)``. As a
    ``DistributedSampler`` it is left alone by Lightning, which calls its ``set_epoch``.

    Args:
        lengths: number of tokens of each row.
        batch_size: rows per process and batch.
        shuffle: whether batches are random, per epoch.
        seed: of the shuffling.
        num_replicas: number of processes; by default torch.distributed's, or 1.
        rank: of this process; by default torch.distributed's, or 0.
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
        """Rows of all processes in one step."""
        return self.batch_size * self.num_replicas

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank, wherever the epoch was resumed."""
        return -(-len(self.lengths) // self.global_batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """This rank's batches, from ``start`` on; the next time from the first again."""
        start, self.start = self.start, 0
        for batch in islice(self.global_batches(), start, None):
            yield self._share(batch).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; another one than before begins with its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def global_batches(self) -> list[np.ndarray]:
        """The rows of all processes, step by step."""
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
    """A ``DataLoader`` over a :class:`BucketSampler` that can go on in the middle of an epoch.

    Lightning stores ``state_dict()`` in its checkpoints and restores it before the first batch.
    The state counts the batches handed out, so a checkpoint written after a step resumes with
    the next batch. Where ``finished`` is set, a batch counts once it is also finished there: one
    that was handed out and failed is then taken again.
    """

    sampler: BucketSampler
    # Class attributes: Lightning may build the loader anew from the arguments of its `__init__`.
    handed_out = 0
    of_epoch = 0
    finished: Callable[[], int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: workers start, and the epoch is read, when the first batch is asked for.
        # Lightning makes the iterator before it has called `set_epoch`.
        self.handed_out, self.of_epoch = self.sampler.start, self.sampler.epoch
        for batch in super().__iter__():
            self.handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, the number of its batches that are done, and what makes them comparable."""
        done = self.sampler.start
        if self.of_epoch == self.sampler.epoch:
            done = min(self.handed_out, self.finished()) if self.finished else self.handed_out
        return {
            "epoch": self.sampler.epoch,
            "batches": done,
            "global_batch_size": self.sampler.global_batch_size,
            "rows": len(self.sampler.lengths),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the batches that ``state`` counts, instead of at the epoch's start."""
        here = self.state_dict()
        for key in ("global_batch_size", "rows"):
            if state[key] != here[key]:
                warnings.warn(
                    f"resuming in the middle of an epoch with {key} {here[key]} where the "
                    f"checkpoint had {state[key]}: its remaining batches repeat some rows and miss "
                    "others. Keep the data, and batch_size times the number of processes.",
                    stacklevel=2,
                )
        self.sampler.epoch = self.of_epoch = state["epoch"]
        self.sampler.start = self.handed_out = state["batches"]
