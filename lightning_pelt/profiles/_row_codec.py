"""Rows of a store: a profile as bytes, with a checksum of the complete row."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lightning_pelt.profiles._errors import MAX_NAMED, DamagedProfile
from lightning_pelt.profiles._mask_codec import HEADER_SIZE, pack, read_header, unpack
from lightning_pelt.profiles.profile import Profile

MAX_ID_LENGTH = 200
MAX_VERSION = 2**31 - 1  # PostgreSQL's integer
_CHECKED = struct.Struct("<qiii")


class EncodedProfile(NamedTuple):
    """A profile as bytes.

    Attributes:
        id: of the profile.
        masks: header and rows of the masks, see :mod:`._mask_codec`.
        norm: a safetensors file.
        head: a safetensors file.
    """

    id: str
    masks: bytes
    norm: bytes | None
    head: bytes | None


def encode(items: Mapping[str, Profile]) -> list[EncodedProfile]:
    """Profiles by id as bytes; masks of equal dtype and shape are packed together."""
    groups: dict[Any, list[str]] = {}
    for id, profile in items.items():
        groups.setdefault((profile.masks.dtype, profile.masks.shape), []).append(id)
    encoded = []
    for ids in groups.values():
        members = [items[id] for id in ids]
        packed = pack(np.stack([one.masks for one in members]), [one.scale for one in members])
        encoded += [
            EncodedProfile(id, masks, one.norm_bytes(), one.head_bytes())
            for id, masks, one in zip(ids, packed, members, strict=True)
        ]
    return encoded


def make_row(encoded: EncodedProfile, version: int, bank: str) -> dict[str, Any]:
    """The row of a profile, with its checksum."""
    checksum = row_checksum(
        encoded.id, version, encoded.masks, encoded.norm, encoded.head, bank=bank
    )
    return {**encoded._asdict(), "version": version, "checksum": checksum}


def row_checksum(
    id: str, version: int, masks: bytes, norm: bytes | None, head: bytes | None, *, bank: str
) -> int:
    """CRC32 of all values of a row and of the bank, as the signed number that databases store."""
    lengths = [-1 if part is None else len(part) for part in (masks, norm, head)]
    numbers = _CHECKED.pack(version, *lengths)
    content = (bank.encode(), numbers, masks, norm or b"", head or b"", id.encode())
    checksum = zlib.crc32(b"".join(content))
    return checksum - 2**32 if checksum >= 2**31 else checksum


def decode(rows: Sequence[Any], bank: str) -> list[Profile | str]:
    """The profile of each row, or the damage of the row; equal headers are unpacked together."""
    result: list[Profile | str] = [""] * len(rows)
    groups: dict[bytes, list[int]] = {}
    for index, (id, version, masks, norm, head, checksum) in enumerate(rows):
        try:
            matches = row_checksum(id, version, masks, norm, head, bank=bank) == checksum
        except (TypeError, AttributeError, ValueError, struct.error):  # a value of another type
            matches = False
        if matches and is_version(version):
            groups.setdefault(masks[:HEADER_SIZE], []).append(index)
        else:
            result[index] = "its checksum does not match: a bit was flipped, or rows were swapped"
    for members in groups.values():
        decoded = _unpack_group([rows[index] for index in members], bank)
        for index, profile in zip(members, decoded, strict=True):
            result[index] = profile
    return result


def _unpack_group(rows: Sequence[Any], bank: str) -> list[Profile | str]:
    """Decode rows with equal headers; a wrong row does not affect the others."""
    try:
        scale = read_header(rows[0][2]).scale
        # Copies, since one profile would otherwise keep the masks of all in memory.
        masks = [one.copy() for one in unpack([row[2] for row in rows])]
        return [
            Profile._from_checked(mask, bank, scale)._with_parts(row[3], row[4])
            for mask, row in zip(masks, rows, strict=True)
        ]
    except ValueError as error:
        if len(rows) == 1:
            return [str(error)]
        return [_unpack_group([row], bank)[0] for row in rows]


def check_rows(rows: Sequence[Mapping[str, Any]], bank: str, source: str) -> None:
    """Raise a ``DamagedProfile`` if rows from ``source`` could not be read once written."""
    columns = ("id", "version", "masks", "norm", "head", "checksum")
    decoded = decode([[row[name] for name in columns] for row in rows], bank)
    bad = {row["id"]: one for row, one in zip(rows, decoded, strict=True) if isinstance(one, str)}
    if bad:
        raise DamagedProfile(bad, source)


def require_profile(id: str, profile: Profile | str, store: str) -> Profile:
    """``profile``, or a ``DamagedProfile`` if it is the damage of a row of ``store``."""
    if isinstance(profile, str):
        raise DamagedProfile({id: profile}, store)
    return profile


def is_version(version: object) -> bool:
    """Whether a value is the number of a version."""
    return type(version) is int and 0 < version <= MAX_VERSION


def id_error(id: object) -> str | None:
    """Why ``id`` is not a valid id; None if it is one."""
    if not isinstance(id, str):
        return f"{repr(id)[:100]} is a {type(id).__name__}, expected a string"
    if not 0 < len(id) <= MAX_ID_LENGTH:
        return f"{id[:MAX_NAMED]!r}... has {len(id)} characters, expected 1 to {MAX_ID_LENGTH}"
    if "\0" in id or (not id.isascii() and re.search("[\ud800-\udfff]", id)):
        return f"{id!r} contains a character that databases cannot store"
    return None


def check_ids(ids: Iterable[str], source: str) -> None:
    """Raise a ``ValueError`` for the first invalid id; ``source`` has or gets the profiles."""
    for id in ids:
        error = id_error(id)
        if error is not None:
            raise ValueError(f"{source}: the id of a profile {error}")
