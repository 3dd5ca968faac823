"""Random banks as integers, from a counter-based stream for each block, side and adapter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

RECIPE = 1  # version of this file's algorithm; half of the key of every stream


def integers(seed: int, *, blocks: int, size: int, values: int) -> Iterator[NDArray[np.int8]]:
    """Generate a bank side by side: A of block 0, B of block 0, A of block 1, ...

    Each 16 bits of a stream give one integer, the number of ones minus 8, with mean 0 and standard
    deviation 2. More threads would not be faster, since NumPy holds the GIL while it draws.

    Args:
        seed: of the bank, below 2^64.
        blocks: number of blocks, L.
        size: number of adapters, N.
        values: number of values of one side of an adapter, d * b.

    Yields:
        2 L contiguous arrays of shape (N, values) with integers from -8 to 8.
    """
    bits = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16)
    centred = bits.sum(1).astype(np.int8) - np.int8(8)
    for block in range(blocks):
        for side in (0, 1):
            streams = [_words(seed, (adapter, side, block), values) for adapter in range(size)]
            yield centred[np.stack(streams)]


def _words(seed: int, stream: tuple[int, int, int], count: int) -> NDArray[np.uint16]:
    """(count,): the stream of (adapter, side, block), the low bits of its 64-bit words first.

    NumPy guarantees that the raw output of a ``BitGenerator`` never changes; it does not guarantee
    this for the distributions. Philox increments the counter before it draws, so that the first
    four 64-bit words are those of counter 1.
    """
    key = np.array([seed, RECIPE], np.uint64)
    counter = np.array([0, *stream], np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(-(-count // 4))
    return raw.astype("<u8", copy=False).view("<u2")[:count]
