"""Random banks as integers: a counter-based stream for every block, side and adapter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

RECIPE = 1  # version of all that follows; half of the key of every stream


def integers(seed: int, *, blocks: int, size: int, values: int) -> Iterator[NDArray[np.int8]]:
    """A bank, piece by piece: A of block 0, B of block 0, A of block 1, ...

    Each 16 bits of a stream give one integer, its number of ones less 8: of mean 0 and standard
    deviation 2.

    In one thread: NumPy holds the interpreter's lock while it draws, so more threads only wait.

    Args:
        seed: of the bank, below 2^64.
        blocks: L.
        size: N.
        values: d * b, of one side of an adapter.

    Returns:
        2 L arrays of shape (N, values), contiguous, from -8 to 8.
    """
    bits = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16)
    centred = bits.sum(1).astype(np.int8) - np.int8(8)
    for block in range(blocks):
        for side in (0, 1):
            streams = [_words(seed, (adapter, side, block), values) for adapter in range(size)]
            yield centred[np.stack(streams)]


def _words(seed: int, place: tuple[int, int, int], count: int) -> NDArray[np.uint16]:
    """(count,): the stream of (adapter, side, block), the low bits of its 64-bit words first.

    NumPy promises the raw output of a ``BitGenerator`` for good, and not what it derives from it.
    Philox counts up before it draws, so the first four 64-bit words are those of counter 1.
    """
    key = np.array([seed, RECIPE], np.uint64)
    counter = np.array([0, *place], np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(-(-count // 4))
    return raw.astype("<u8", copy=False).view("<u2")[:count]
