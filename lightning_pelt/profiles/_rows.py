"""Masks as packed rows, one for each block and side, behind a header that says how to read them.

Little-endian throughout, bits included; hard rows are padded with zeros to whole bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

HARD, SOFT = 0, 1
LIMIT = 2**16 - 1  # of blocks and of adapters, which the header counts in 16 bits
_HEADER = struct.Struct("<HHHHd")
HEADER_SIZE = _HEADER.size
_SET_BITS = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)


class Form(NamedTuple):
    """The header of packed masks: how many rows of what, and how they are scaled.

    ``k`` is the number of adapters that each hard row chooses, and 0 where masks are soft.
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


def read_form(packed: bytes) -> Form:
    """The header at the start of ``packed``.

    Raises:
        ValueError: it is cut short or has a mode of no meaning.
    """
    if len(packed) < HEADER_SIZE:
        raise ValueError(f"{len(packed)} bytes are too few for the {HEADER_SIZE} of a mask header")
    form = Form(*_HEADER.unpack_from(packed))
    if form.mode not in (HARD, SOFT):
        raise ValueError(f"the mode of its masks is {form.mode}, expected 0 (hard) or 1 (soft)")
    return form


def check_length(packed: bytes, form: Form) -> None:
    """Refuse ``packed`` where it is not as long as its header says."""
    expected = HEADER_SIZE + form.masks_bytes
    if len(packed) != expected:
        raise ValueError(
            f"header and masks take {len(packed)} bytes, and the header announces {expected}: "
            "the profile is truncated, or not of this format"
        )


def pack(masks: NDArray, scales: Iterable[float]) -> list[bytes]:
    """Header and rows of each profile, out of (P, L, 2, N): bool where hard, float32 where soft."""
    _, blocks, _, size = masks.shape
    hard = masks.dtype == np.bool_
    rows = np.packbits(masks, axis=-1, bitorder="little") if hard else masks.astype("<f4")
    chosen = masks[:, 0, 0].sum(-1).tolist() if hard else [0] * len(masks)
    mode = HARD if hard else SOFT
    return [
        _HEADER.pack(mode, blocks, size, k, scale) + own.tobytes()
        for own, k, scale in zip(rows, chosen, scales, strict=True)
    ]


def unpack(packed: Sequence[bytes]) -> NDArray:
    """Masks of several profiles whose headers are equal: bool or float32 of (P, L, 2, N).

    Raises:
        ValueError: a length, a number of chosen adapters, padding or a weight is wrong; where it
            belongs to a row, its block and side are named.
    """
    form = read_form(packed[0])
    for one in packed:
        check_length(one, form)
    together = np.frombuffer(b"".join(packed), np.uint8).reshape(len(packed), -1)
    rows = together[:, HEADER_SIZE:].reshape(len(packed), form.blocks, 2, form.row_bytes)
    if form.mode == SOFT:
        weights = np.ascontiguousarray(rows).view("<f4").astype(np.float32)
        check_weights(weights)
        return weights
    _check_padding(rows, form.size)
    check_counts(_SET_BITS.take(rows).sum(-1), form.k)
    return np.unpackbits(rows, axis=-1, count=form.size, bitorder="little").view(np.bool_)


def check_counts(counts: NDArray, k: int) -> None:
    """Refuse hard rows, (..., L, 2) set bits, that do not choose ``k`` adapters each."""
    wrong = counts != k
    if wrong.any():
        raise ValueError(
            f"{_where(wrong)} chooses {counts[wrong][0]} adapters, and every row of this profile "
            f"must choose k={k}"
        )
    if k == 0 or counts.size == 0:
        raise ValueError("the profile is empty: it chooses no adapter in any block")


def check_weights(weights: NDArray) -> None:
    """Refuse soft rows, (..., L, 2, N), that are not weights or give none to any adapter."""
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        raise ValueError(
            f"{_where(wrong.any(-1))} holds the weight {weights[wrong][0]}: soft weights are "
            "finite and not negative, as a softmax gives them"
        )
    nothing = ~weights.any(-1)
    if nothing.any() or weights.size == 0:
        row = _where(nothing) if nothing.any() else "every row"
        raise ValueError(f"the profile is empty: {row} gives no weight to any adapter")


def _check_padding(rows: NDArray, size: int) -> None:
    used = size % 8
    wrong = rows[..., -1] >> used != 0 if used else np.zeros(1, dtype=bool)
    if wrong.any():
        raise ValueError(
            f"{_where(wrong)} has padding bits set: the last {8 - used} bits of a row of N={size} "
            "must be zero"
        )


def _where(wrong: Any) -> str:
    """The first row that is wrong, out of (..., L, 2)."""
    *_, block, side = np.argwhere(wrong)[0]
    return f"block {block}, side {'AB'[side]}"
