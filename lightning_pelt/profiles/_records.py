"""Rows of a store: a profile as bytes, under a checksum of everything that makes the row."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from lightning_pelt.profiles._rows import HEADER_SIZE, pack, read_form, unpack
from lightning_pelt.profiles.profile import Profile

SHOWN = 10  # ids that a message names
LONGEST_ID = 200
_SEALED = struct.Struct("<qiii")


class UnknownProfile(KeyError):
    """Profiles, or versions of one, that the store does not have.

    Attributes:
        ids: of the profiles.
    """

    def __init__(self, message: str, ids: Sequence[str]) -> None:
        super().__init__(message, tuple(ids))  # as it is pickled

    @property
    def ids(self) -> tuple[str, ...]:
        return self.args[1]

    def __str__(self) -> str:
        return self.args[0]  # a KeyError would show its representation


class DamagedProfile(ValueError):
    """Profiles whose rows are not what was written; all others can be read.

    Attributes:
        reasons: what is wrong, by id.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(dict(reasons))  # as it is pickled

    @property
    def reasons(self) -> dict[str, str]:
        return self.args[0]

    def __str__(self) -> str:
        said = "; ".join(f"{id!r}: {why}" for id, why in islice(self.reasons.items(), SHOWN))
        return (
            f"damaged: {said}{more(self.reasons)}. Put the profile again, or delete it; all others "
            "can be read, and verify() lists those that cannot"
        )


def more(all_of_them: Sequence[str] | Mapping[str, str]) -> str:
    """How many a message leaves out."""
    return f" and {len(all_of_them) - SHOWN} more" if len(all_of_them) > SHOWN else ""


class Parts(NamedTuple):
    """A profile as bytes: header and rows of the masks, and the others as safetensors."""

    id: str
    masks: bytes
    norm: bytes | None
    head: bytes | None


def to_parts(items: Mapping[str, Profile]) -> list[Parts]:
    """Profiles by id as bytes; those whose masks are alike are packed together."""
    alike: dict[Any, list[str]] = {}
    for id, profile in items.items():
        alike.setdefault((profile.masks.dtype, profile.masks.shape), []).append(id)
    made = []
    for ids in alike.values():
        some = [items[id] for id in ids]
        packed = pack(np.stack([one.masks for one in some]), [one.scale for one in some])
        made += [
            Parts(id, masks, one.norm_bytes(), one.head_bytes())
            for id, masks, one in zip(ids, packed, some, strict=True)
        ]
    return made


def sealed(given: Parts, version: int, bank: str) -> dict[str, Any]:
    """The row of ``given``."""
    checksum = seal(given.id, version, given.masks, given.norm, given.head, bank=bank)
    return {**given._asdict(), "version": version, "checksum": checksum}


def seal(
    id: str, version: int, masks: bytes, norm: bytes | None, head: bytes | None, *, bank: str
) -> int:
    """CRC32 of everything that makes a row what it is, as the signed number that databases hold."""
    lengths = [-1 if part is None else len(part) for part in (masks, norm, head)]
    said = _SEALED.pack(version, *lengths)
    content = (bank.encode(), said, masks, norm or b"", head or b"", id.encode())
    checksum = zlib.crc32(b"".join(content))
    return checksum - 2**32 if checksum >= 2**31 else checksum


def decode(rows: Sequence[Any], bank: str) -> list[Profile | str]:
    """The profile of each row, or what is wrong with it; those alike are unpacked together."""
    result: list[Profile | str] = [""] * len(rows)
    groups: dict[bytes, list[int]] = {}
    for index, (id, version, masks, norm, head, checksum) in enumerate(rows):
        try:
            holds = seal(id, version, masks, norm, head, bank=bank) == checksum
        except (TypeError, AttributeError, ValueError, struct.error):  # another type, even
            holds = False
        if holds:
            groups.setdefault(masks[:HEADER_SIZE], []).append(index)
        else:
            result[index] = "its checksum does not hold: a bit was flipped, or rows were swapped"
    for members in groups.values():
        made = _unpacked([rows[index] for index in members], bank)
        for index, profile in zip(members, made, strict=True):
            result[index] = profile
    return result


def _unpacked(rows: Sequence[Any], bank: str) -> list[Profile | str]:
    """Of rows with equal headers; one that is wrong does not take the others with it."""
    try:
        scale = read_form(rows[0][2]).scale
        # Copies, or one profile would keep the masks of all in memory.
        masks = [one.copy() for one in unpack([row[2] for row in rows])]
        return [
            Profile._of_checked(mask, bank, scale)._with(row[3], row[4])
            for mask, row in zip(masks, rows, strict=True)
        ]
    except ValueError as error:
        if len(rows) == 1:
            return [str(error)]
        return [_unpacked([row], bank)[0] for row in rows]


def check_rows(rows: Sequence[Mapping[str, Any]], bank: str) -> None:
    """Refuse to write what could not be read."""
    columns = ("id", "version", "masks", "norm", "head", "checksum")
    made = decode([[row[name] for name in columns] for row in rows], bank)
    bad = {row["id"]: one for row, one in zip(rows, made, strict=True) if isinstance(one, str)}
    if bad:
        raise DamagedProfile(bad)


def sound(id: str, profile: Profile | str) -> Profile:
    """``profile``, unless it is the reason why there is none."""
    if isinstance(profile, str):
        raise DamagedProfile({id: profile})
    return profile


def id_fault(id: object) -> str | None:
    """Why ``id`` cannot be one."""
    if not isinstance(id, str):
        return f"{id!r} is a {type(id).__name__}, expected text"
    if not 0 < len(id) <= LONGEST_ID:
        return f"{id[:SHOWN]!r}... has {len(id)} characters, expected 1 to {LONGEST_ID}"
    if "\0" in id or (not id.isascii() and re.search("[\ud800-\udfff]", id)):
        return f"{id!r} holds a character that databases do not keep"
    return None


def check_ids(ids: Iterable[str]) -> None:
    for id in ids:
        fault = id_fault(id)
        if fault is not None:
            raise ValueError(f"the id of a profile {fault}")
