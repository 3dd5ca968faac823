"""Masks as packed bytes: a header, then one row per block and side.

All values are little-endian, and so is the order of bits. Hard rows are padded with zero bits to
whole bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

HARD, SOFT = 0, 1
MAX_SIZE = 2**16 - 1  # of blocks and of adapters, which the header counts in 16 bits
_HEADER = struct.Struct("<HHHHd")
HEADER_SIZE = _HEADER.size
_SET_BITS = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)


class MaskHeader(NamedTuple):
    """The header of packed masks.

    Attributes:
        mode: ``HARD`` or ``SOFT``.
        blocks: number of blocks, L.
        size: number of adapters, N.
        k: number of adapters that each hard row selects; 0 for soft masks.
        scale: factor of the masks.
    """

    mode: int
    blocks: int
    size: int
    k: int
    scale: float

    @property
    def row_bytes(self) -> int:
        return 4 * self.size if self.mode == SOFT else (self.size + 7) // 8

    @property
    def masks_bytes(self) -> int:
        return 2 * self.blocks * self.row_bytes


def read_header(packed: bytes) -> MaskHeader:
    """Read the header at the start of ``packed``.

    Raises:
        ValueError: the header is truncated or its mode is unknown.
    """
    if len(packed) < HEADER_SIZE:
        raise ValueError(
            f"the masks have {len(packed)} bytes, expected at least the {HEADER_SIZE} of a header"
        )
    header = MaskHeader(*_HEADER.unpack_from(packed))
    if header.mode not in (HARD, SOFT):
        raise ValueError(f"the mode of the masks is {header.mode}, expected 0 (hard) or 1 (soft)")
    return header


def check_length(packed: bytes, header: MaskHeader) -> None:
    """Raise a ``ValueError`` if ``packed`` is not as long as its header announces."""
    expected = HEADER_SIZE + header.masks_bytes
    if len(packed) != expected:
        raise ValueError(
            f"header and masks have {len(packed)} bytes, expected {expected} by the header: the "
            "profile is truncated or has another format"
        )


def pack(masks: NDArray, scales: Iterable[float]) -> list[bytes]:
    """Header and rows of each profile.

    Args:
        masks: (P, L, 2, N) of P profiles; bool for hard masks, float32 for soft masks.
        scales: one scale per profile.
    """
    _, blocks, _, size = masks.shape
    hard = masks.dtype == np.bool_
    rows = np.packbits(masks, axis=-1, bitorder="little") if hard else masks.astype("<f4")
    counts = masks[:, 0, 0].sum(-1).tolist() if hard else [0] * len(masks)
    mode = HARD if hard else SOFT
    return [
        _HEADER.pack(mode, blocks, size, k, scale) + own.tobytes()
        for own, k, scale in zip(rows, counts, scales, strict=True)
    ]


def unpack(packed: Sequence[bytes]) -> NDArray:
    """The masks of several profiles with equal headers: bool or float32 of (P, L, 2, N).

    Raises:
        ValueError: a length, a size, the scale, a number of selected adapters, padding or a weight
            is wrong. The message names the block and side of a wrong row.
    """
    header = read_header(packed[0])
    for one in packed:
        check_length(one, header)
    if 0 in (header.blocks, header.size):
        raise ValueError(
            f"the profile is empty: it has {header.blocks} blocks and {header.size} adapters"
        )
    if not 0 < header.scale < math.inf:
        raise ValueError(f"the scale is {header.scale}, expected a positive number")
    together = np.frombuffer(b"".join(packed), np.uint8).reshape(len(packed), -1)
    rows = together[:, HEADER_SIZE:].reshape(len(packed), header.blocks, 2, header.row_bytes)
    if header.mode == SOFT:
        weights = np.ascontiguousarray(rows).view("<f4").astype(np.float32)
        check_weights(weights)
        return weights
    _check_padding(rows, header.size)
    check_counts(_SET_BITS.take(rows).sum(-1), header.k)
    return np.unpackbits(rows, axis=-1, count=header.size, bitorder="little").view(np.bool_)


def check_counts(counts: NDArray, k: int) -> None:
    """Raise a ``ValueError`` if a hard row, of (..., L, 2) set bits, does not select ``k``."""
    wrong = counts != k
    if wrong.any():
        raise ValueError(
            f"{_first_row(wrong)} selects {counts[wrong][0]} adapters, expected k={k} as in all "
            "rows of the profile"
        )
    if k == 0 or counts.size == 0:
        raise ValueError("the profile is empty: it selects no adapter in any block")


def check_weights(weights: NDArray) -> None:
    """Raise a ``ValueError`` if a soft row, of (..., L, 2, N), is not a row of weights."""
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        raise ValueError(
            f"{_first_row(wrong.any(-1))} contains the weight {weights[wrong][0]}, expected finite "
            "weights of at least 0, such as those of a softmax"
        )
    zero = ~weights.any(-1)
    if zero.any() or weights.size == 0:
        row = _first_row(zero) if zero.any() else "every row"
        raise ValueError(f"the profile is empty: {row} gives all adapters the weight 0")


def _check_padding(rows: NDArray, size: int) -> None:
    used = size % 8
    wrong = rows[..., -1] >> used != 0 if used else np.zeros(1, dtype=bool)
    if wrong.any():
        raise ValueError(
            f"{_first_row(wrong)} has padding bits set: the last {8 - used} bits of a row of "
            f"N={size} must be zero"
        )


def _first_row(wrong: Any) -> str:
    """The first row of (..., L, 2) that is wrong."""
    *_, block, side = np.argwhere(wrong)[0]
    return f"block {block}, side {'AB'[side]}"
