"""A profile: which adapters of a frozen bank one user has, in a few hundred bytes."""

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

from lightning_pelt.profiles._rows import (
    HEADER_SIZE,
    LIMIT,
    check_counts,
    check_length,
    check_weights,
    pack,
    read_form,
    unpack,
)

MAGIC, FORMAT = b"XPFT", 1
_PREFIX = struct.Struct("<4sH32s")
_CRC_SIZE = 4
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Profile:
    """What one user adds to a frozen backbone and bank (X-PEFT, https://arxiv.org/abs/2401.16137).

    Args:
        masks: (L, 2, N), of L blocks, sides A and B, and N adapters: bool where the choice is hard,
            with equally many in each row; float32 weights, as a softmax gives them, where it is
            soft.
        bank: digest of the bank that the masks choose from, 64 hexadecimal characters.
        scale: what multiplies the sum of the chosen adapters.
        norm: (L, 2, b) float32, weight and bias of the LayerNorm on each block's bottleneck; None
            where it is shared.
        head: float32 tensors of a head of one's own, by name; None where it is shared.

    Raises:
        ValueError: a part has another shape, type or values than these; the row of a mask that is
            wrong is named.
    """

    masks: NDArray = field(repr=False)
    bank: str
    scale: float
    norm: NDArray | None = field(default=None, repr=False)
    head: Mapping[str, NDArray] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_masks(self.masks)
        if not isinstance(self.bank, str) or not _DIGEST.fullmatch(self.bank):
            raise ValueError(
                f"the bank's digest is {self.bank!r}, expected the 64 hexadecimal characters that "
                "bank.digest gives"
            )
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"the scale is {self.scale}, expected a positive number")
        if self.norm is not None:
            if np.ndim(self.norm) != 3 or self.norm.shape[:2] != (self.blocks, 2):
                raise ValueError(
                    f"the norm has the shape {np.shape(self.norm)}, expected ({self.blocks}, 2, b):"
                    " weight and bias of each block's bottleneck"
                )
            _check_values("norm", self.norm)
        if self.head is not None:
            if not self.head:
                raise ValueError("the head has no tensors: give None where it is shared")
            for name, tensor in self.head.items():
                _check_values(f"{name} of the head", tensor)

    @classmethod
    def _of_checked(cls, masks: NDArray, bank: str, scale: float) -> Profile:
        """Of masks that ``unpack`` has checked: to do it again would add half to a read's time."""
        profile = object.__new__(cls)
        vars(profile).update(masks=masks, bank=bank, scale=scale, norm=None, head=None)
        return profile

    def __eq__(self, other: object) -> bool:
        """Whether all parts are equal, to the last bit of each value."""
        if not isinstance(other, Profile):
            return NotImplemented
        mine, theirs = self.head or {}, other.head or {}
        return (
            (self.bank, self.scale, mine.keys()) == (other.bank, other.scale, theirs.keys())
            and _same(self.masks, other.masks)
            and _same(self.norm, other.norm)
            and all(_same(mine[name], theirs[name]) for name in mine)
        )

    @property
    def hard(self) -> bool:
        return self.masks.dtype == np.bool_

    @property
    def blocks(self) -> int:
        """L."""
        return self.masks.shape[0]

    @property
    def size(self) -> int:
        """N, the number of adapters of the bank."""
        return self.masks.shape[2]

    @property
    def k(self) -> int | None:
        """How many adapters each row of a hard mask chooses; None where masks are soft."""
        return int(self.masks[0, 0].sum()) if self.hard else None

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes of the values of each part: 2⌈N/8⌉L for hard masks and 8NL for soft ones."""
        return {
            "masks": len(self._packed()) - HEADER_SIZE,
            "norm": 0 if self.norm is None else self.norm.nbytes,
            "head": sum(tensor.nbytes for tensor in (self.head or {}).values()),
        }

    def _packed(self) -> bytes:
        return pack(self.masks[None], [self.scale])[0]

    def to_bytes(self) -> bytes:
        """The masks with the bank's digest and the scale, sealed by a CRC32; not norm nor head.

        Magic ``XPFT``, version (16 bits) and digest (32 bytes); mode, L, N and k (16 bits each) and
        scale (64-bit float); a row of ⌈N/8⌉ bytes, or of N 32-bit floats, for each block and side;
        CRC32 of all before it. Little-endian, the order of bits included.
        """
        data = _PREFIX.pack(MAGIC, FORMAT, bytes.fromhex(self.bank)) + self._packed()
        return data + zlib.crc32(data).to_bytes(_CRC_SIZE, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> Profile:
        """The inverse of :meth:`to_bytes`.

        Raises:
            ValueError: these are other bytes than :meth:`to_bytes` gave: foreign, of a later
                version, truncated, or with a bit flipped; or a row is wrong, which is then named.
        """
        if data[: len(MAGIC)] != MAGIC or len(data) < _PREFIX.size + HEADER_SIZE + _CRC_SIZE:
            raise ValueError(
                f"these {len(data)} bytes are not a packed profile: one begins with {MAGIC!r} and "
                f"takes more than {_PREFIX.size + HEADER_SIZE + _CRC_SIZE} bytes"
            )
        _, version, digest = _PREFIX.unpack_from(data)
        if version != FORMAT:
            raise ValueError(
                f"the profile is of format {version}, and this version reads {FORMAT}: read it "
                "with the version that wrote it"
            )
        packed = data[_PREFIX.size : -_CRC_SIZE]
        form = read_form(packed)
        check_length(packed, form)
        if zlib.crc32(data[:-_CRC_SIZE]) != int.from_bytes(data[-_CRC_SIZE:], "little"):
            raise ValueError("the profile's checksum does not hold: a bit of it was flipped")
        return cls(unpack([packed])[0], digest.hex(), form.scale)

    def norm_bytes(self) -> bytes | None:
        """The norm as a safetensors file."""
        return None if self.norm is None else _to_safetensors({"norm": self.norm})

    def head_bytes(self) -> bytes | None:
        """The head as a safetensors file."""
        return None if self.head is None else _to_safetensors(self.head)

    @classmethod
    def from_parts(
        cls, masks: bytes, norm: bytes | None = None, head: bytes | None = None
    ) -> Profile:
        """The inverse of :meth:`to_bytes`, :meth:`norm_bytes` and :meth:`head_bytes`.

        Raises:
            ValueError: a part is damaged, foreign, or does not fit the others.
        """
        return cls.from_bytes(masks)._with(norm, head)

    def _with(self, norm: bytes | None, head: bytes | None) -> Profile:
        if norm is None and head is None:
            return self
        tensors = {} if norm is None else _from_safetensors("norm", norm)
        if norm is not None and tensors.keys() != {"norm"}:
            raise ValueError(f"the norm holds the tensors {sorted(tensors)}, expected ['norm']")
        own = None if head is None else _from_safetensors("head", head)
        return replace(self, norm=tensors.get("norm"), head=own)


def accounting(profile: Profile, width: int, bottleneck: int) -> dict[str, float]:
    """Bytes of a profile, part by part, and how often they go into an fp32 adapter's.

    ``masks_ratio`` counts the masks alone, as the paper does; ``total_ratio`` what is kept.

    Args:
        profile: of L blocks.
        width: d, of the backbone.
        bottleneck: b. The adapter has 2dbL weights; its biases are left out.

    Returns:
        ``masks``, ``norm``, ``head``, ``total`` and ``adapter`` in bytes, and the two ratios.
    """
    parts = profile.bytes_by_part()
    total, adapter = sum(parts.values()), 4 * 2 * width * bottleneck * profile.blocks
    ratios = {"masks_ratio": adapter / parts["masks"], "total_ratio": adapter / total}
    return {**parts, "total": total, "adapter": adapter, **ratios}


def _check_masks(masks: NDArray) -> None:
    if not isinstance(masks, np.ndarray) or masks.dtype not in (np.bool_, np.float32):
        kind = getattr(masks, "dtype", type(masks).__name__)
        raise ValueError(
            f"masks are {kind}, expected a NumPy array of bool (hard) or float32 (soft)"
        )
    if masks.ndim != 3 or masks.shape[1] != 2:
        raise ValueError(f"masks have the shape {masks.shape}, expected (blocks, 2, adapters)")
    if 0 in masks.shape:
        raise ValueError(f"the profile is empty: its masks have the shape {masks.shape}")
    if max(masks.shape) > LIMIT:
        raise ValueError(f"masks have the shape {masks.shape}: no part of it may exceed {LIMIT}")
    if masks.dtype == np.bool_:
        counts = masks.sum(-1)
        check_counts(counts, int(counts[0, 0]))
    else:
        check_weights(masks)


def _check_values(name: str, values: NDArray) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        kind = getattr(values, "dtype", type(values).__name__)
        raise ValueError(f"{name} is {kind}, expected a NumPy array of float32")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds values that are not finite: its training went wrong")


def _same(one: NDArray | None, other: NDArray | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and np.array_equal(one, other)


def _to_safetensors(tensors: Mapping[str, NDArray]) -> bytes:
    return save({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()})


def _from_safetensors(part: str, data: bytes) -> dict[str, NDArray]:
    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"the {part} is truncated or not of safetensors: {error}") from error
