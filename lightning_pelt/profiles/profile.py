"""A profile: the adapters of a frozen bank that one user selects, in a few hundred bytes."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lightning_pelt.profiles._mask_codec import (
    HEADER_SIZE,
    MAX_SIZE,
    check_counts,
    check_length,
    check_weights,
    pack,
    read_header,
    unpack,
)

MAGIC, FORMAT = b"XPFT", 1
_PREFIX = struct.Struct("<4sH32s")
_CRC_SIZE = 4
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Profile:
    """The tuning of one user over a frozen backbone and bank.

    X-PEFT, https://arxiv.org/abs/2401.16137.

    Args:
        masks: (L, 2, N) for L blocks, sides A and B, and N adapters. Hard masks are bool, with the
            same number of adapters selected in each row; soft masks are float32 weights, such as
            those of a softmax.
        bank: digest of the bank, 64 hexadecimal characters.
        scale: factor of the sum of the selected adapters.
        norm: (L, 2, b) float32, weight and bias of the LayerNorm in the bottleneck of each block;
            None if all users share the norm.
        head: float32 tensors of the user's own head, by name; None if all users share the head.

    Raises:
        ValueError: a part has another shape, dtype or value. The message names the row of a wrong
            mask.

    Example:
        >>> masks = np.zeros((2, 2, 8), dtype=bool)
        >>> masks[:, :, :3] = True
        >>> profile = Profile(masks, bank="0" * 64, scale=0.5)
        >>> profile
        Profile(bank='0000000000000000000000000000000000000000000000000000000000000000', scale=0.5)
        >>> profile.k, profile.bytes_by_part()
        (3, {'masks': 4, 'norm': 0, 'head': 0})
        >>> Profile.from_bytes(profile.to_bytes()) == profile
        True
    """

    masks: NDArray = field(repr=False)
    bank: str
    scale: float
    norm: NDArray | None = field(default=None, repr=False)
    head: Mapping[str, NDArray] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_masks(self.masks)
        if not is_digest(self.bank):
            raise ValueError(
                f"the digest of the bank is {self.bank!r}, expected 64 hexadecimal characters, as "
                "in BankTensors.digest"
            )
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"the scale is {self.scale}, expected a positive number")
        if self.norm is not None:
            if np.ndim(self.norm) != 3 or self.norm.shape[:2] != (self.blocks, 2):
                raise ValueError(
                    f"the norm has the shape {np.shape(self.norm)}, expected ({self.blocks}, 2, b) "
                    "for weight and bias of the norm in each block's bottleneck"
                )
            _check_values("norm", self.norm)
        if self.head is not None:
            if not self.head:
                raise ValueError("the head has no tensors: pass head=None if it is shared")
            for name, tensor in self.head.items():
                _check_values(f"{name} of the head", tensor)

    @classmethod
    def _from_checked(cls, masks: NDArray, bank: str, scale: float) -> Profile:
        """A profile of masks that ``unpack`` has checked; a second check adds half to a read."""
        profile = object.__new__(cls)
        vars(profile).update(masks=masks, bank=bank, scale=scale, norm=None, head=None)
        return profile

    def __eq__(self, other: object) -> bool:
        """Whether all parts are equal, bit by bit."""
        if not isinstance(other, Profile):
            return NotImplemented
        mine, theirs = self.head or {}, other.head or {}
        return (
            (self.bank, self.scale, mine.keys()) == (other.bank, other.scale, theirs.keys())
            and _equal(self.masks, other.masks)
            and _equal(self.norm, other.norm)
            and all(_equal(mine[name], theirs[name]) for name in mine)
        )

    @property
    def hard(self) -> bool:
        """Whether the masks are k-hot."""
        return self.masks.dtype == np.bool_

    @property
    def blocks(self) -> int:
        """Number of blocks, L."""
        return self.masks.shape[0]

    @property
    def size(self) -> int:
        """Number of adapters of the bank, N."""
        return self.masks.shape[2]

    @property
    def k(self) -> int | None:
        """Number of adapters that each row of a hard mask selects; None for soft masks."""
        return int(self.masks[0, 0].sum()) if self.hard else None

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of the values of each part: 2⌈N/8⌉L for hard masks and 8NL for soft masks."""
        return {
            "masks": len(self._packed()) - HEADER_SIZE,
            "norm": 0 if self.norm is None else self.norm.nbytes,
            "head": sum(tensor.nbytes for tensor in (self.head or {}).values()),
        }

    def _packed(self) -> bytes:
        return pack(self.masks[None], [self.scale])[0]

    def to_bytes(self) -> bytes:
        """The masks, the digest of the bank and the scale, with a CRC32; without norm and head.

        The format is the magic ``XPFT``, version (16 bits) and digest (32 bytes); mode, L, N and k
        (16 bits each) and scale (64-bit float); a row of ⌈N/8⌉ bytes, or of N 32-bit floats, for
        each block and side; the CRC32 of all previous bytes. Bytes and bits are little-endian.
        """
        data = _PREFIX.pack(MAGIC, FORMAT, bytes.fromhex(self.bank)) + self._packed()
        return data + zlib.crc32(data).to_bytes(_CRC_SIZE, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> Profile:
        """The inverse of :meth:`to_bytes`.

        Raises:
            ValueError: the bytes have another format or a later version, are truncated, or have
                a flipped bit; or a row is wrong, and the message names it.
        """
        if data[: len(MAGIC)] != MAGIC or len(data) < _PREFIX.size + HEADER_SIZE + _CRC_SIZE:
            raise ValueError(
                f"the {len(data)} bytes are not a packed profile, which starts with {MAGIC!r} and "
                f"has more than {_PREFIX.size + HEADER_SIZE + _CRC_SIZE} bytes"
            )
        _, version, digest = _PREFIX.unpack_from(data)
        if version != FORMAT:
            raise ValueError(
                f"the profile has the format {version}, and this version reads {FORMAT}: use the "
                "version that wrote it"
            )
        packed = data[_PREFIX.size : -_CRC_SIZE]
        header = read_header(packed)
        check_length(packed, header)
        if zlib.crc32(data[:-_CRC_SIZE]) != int.from_bytes(data[-_CRC_SIZE:], "little"):
            raise ValueError("the checksum of the profile does not match: a bit was flipped")
        return cls(unpack([packed])[0], digest.hex(), header.scale)

    def norm_bytes(self) -> bytes | None:
        """The norm as a safetensors file."""
        return None if self.norm is None else _to_safetensors({"norm": self.norm})

    def head_bytes(self) -> bytes | None:
        """The head as a safetensors file."""
        return None if self.head is None else _to_safetensors(self.head)

    def _with_parts(self, norm: bytes | None, head: bytes | None) -> Profile:
        """The profile with the norm of :meth:`norm_bytes` and the head of :meth:`head_bytes`."""
        if norm is None and head is None:
            return self
        tensors = {} if norm is None else _from_safetensors("norm", norm)
        if norm is not None and tensors.keys() != {"norm"}:
            raise ValueError(f"the norm has the tensors {sorted(tensors)}, expected ['norm']")
        own = None if head is None else _from_safetensors("head", head)
        return replace(self, norm=tensors.get("norm"), head=own)


def is_digest(value: object) -> bool:
    """Whether a value is the digest of a bank."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _check_masks(masks: NDArray) -> None:
    if not isinstance(masks, np.ndarray) or masks.dtype not in (np.bool_, np.float32):
        kind = getattr(masks, "dtype", type(masks).__name__)
        raise ValueError(
            f"masks have the type {kind}, expected a NumPy array of bool (hard) or float32 (soft)"
        )
    if masks.ndim != 3 or masks.shape[1] != 2:
        raise ValueError(f"masks have the shape {masks.shape}, expected (blocks, 2, adapters)")
    if 0 in masks.shape:
        raise ValueError(f"the profile is empty: its masks have the shape {masks.shape}")
    if max(masks.shape) > MAX_SIZE:
        raise ValueError(f"masks have the shape {masks.shape}: no dimension may exceed {MAX_SIZE}")
    if masks.dtype == np.bool_:
        counts = masks.sum(-1)
        check_counts(counts, int(counts[0, 0]))
    else:
        check_weights(masks)


def _check_values(name: str, values: NDArray) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        kind = getattr(values, "dtype", type(values).__name__)
        raise ValueError(f"{name} has the type {kind}, expected a NumPy array of float32")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} contains NaN or infinite values: the training diverged")


def _equal(one: NDArray | None, other: NDArray | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and np.array_equal(one, other)


def _to_safetensors(tensors: Mapping[str, NDArray]) -> bytes:
    return save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()})


def _from_safetensors(part: str, data: bytes) -> dict[str, NDArray]:
    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"the {part} is truncated or not a safetensors file: {error}") from error
