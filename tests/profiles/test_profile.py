"""Profiles: their errors, and their bytes against a loop over bits."""

from __future__ import annotations

import dataclasses
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from profiles.samples import BANK, OTHER_BANK, random_profile
from safetensors.numpy import load, save

from lightning_pelt import Profile
from lightning_pelt.profiles._row_codec import decode, encode, make_row

HEADER = 4 + 2 + 32 + 4 * 2 + 8  # magic, version, digest, four counts, scale
SIZES = [100, 150, 800, 1]


def pack_by_hand(profile: Profile) -> bytes:
    """The format, one bit at a time."""
    blocks, _, n = profile.masks.shape
    data = bytearray(b"XPFT" + (1).to_bytes(2, "little") + bytes.fromhex(profile.bank))
    k = int(profile.masks[0, 0].sum()) if profile.hard else 0
    for number in (0 if profile.hard else 1, blocks, n, k):
        data += number.to_bytes(2, "little")
    data += struct.pack("<d", profile.scale)
    for block in range(blocks):
        for side in range(2):
            row = profile.masks[block, side]
            if profile.hard:
                packed = bytearray(-(-n // 8))
                for i in range(n):
                    if row[i]:
                        packed[i // 8] |= 1 << (i % 8)
                data += packed
            else:
                data += b"".join(struct.pack("<f", weight) for weight in row)
    return bytes(data) + zlib.crc32(data).to_bytes(4, "little")


def replaced(data: bytes, at: int, value: bytes) -> bytes:
    """``data`` with other bytes at one offset, and a checksum that matches."""
    changed = data[:at] + value + data[at + len(value) : -4]
    return changed + zlib.crc32(changed).to_bytes(4, "little")


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("soft", [False, True])
def test_packed_bytes_equal_a_loop_over_bits(n: int, soft: bool) -> None:
    profile = random_profile(n, n=n, soft=soft)
    assert profile.to_bytes() == pack_by_hand(profile)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("soft", [False, True])
def test_a_profile_equals_the_one_from_its_bytes(n: int, soft: bool) -> None:
    profile = random_profile(n, n=n, soft=soft)
    back = Profile.from_bytes(profile.to_bytes())
    assert back == profile
    assert back.masks.dtype == (np.float32 if soft else np.bool_)
    assert (back.hard, back.blocks, back.size) == (not soft, 3, n)
    assert back.k == (None if soft else max(1, n // 2))


def stored(profile: Profile, **parts: bytes) -> Profile | str:
    """The profile of a row with other parts, or the error of the row."""
    (encoded,) = encode({"ann": profile})
    row = make_row(encoded._replace(**parts), 1, BANK)
    columns = ("id", "version", "masks", "norm", "head", "checksum")
    return decode([[row[name] for name in columns]], BANK)[0]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("head", [False, True])
def test_a_profile_equals_the_one_from_its_row(n: int, norm: bool, head: bool) -> None:
    profile = random_profile(n, n=n, norm=norm, head=head)
    parts = (profile.norm_bytes(), profile.head_bytes())
    assert [part is None for part in parts] == [not norm, not head]
    assert stored(profile) == profile
    without = dataclasses.replace(profile, norm=None, head=None)
    assert Profile.from_bytes(profile.to_bytes()) == without


def test_parts_are_plain_safetensors() -> None:
    profile = random_profile(norm=True, head=True)
    norm, head = profile.norm_bytes(), profile.head_bytes()
    assert norm is not None and head is not None and profile.head is not None
    np.testing.assert_array_equal(load(norm)["norm"], profile.norm)
    np.testing.assert_array_equal(load(head)["bias"], profile.head["bias"])


def test_a_head_of_views_keeps_its_values_and_shapes() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    head = {"transposed": values.T, "strided": values[:, ::2], "number": np.array(2, np.float32)}
    profile = dataclasses.replace(random_profile(), head=head)
    read = stored(profile)
    assert isinstance(read, Profile) and read.head is not None
    back = read.head
    np.testing.assert_array_equal(back["transposed"], values.T)
    np.testing.assert_array_equal(back["strided"], [[0, 2], [4, 6], [8, 10]])
    assert back["number"].shape == () and back["number"] == 2


@pytest.mark.parametrize("soft", [False, True])
def test_every_flipped_bit_of_a_packed_profile_raises(soft: bool) -> None:
    data = random_profile(n=11, blocks=2, soft=soft).to_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(ValueError):
            Profile.from_bytes(bytes(flipped))


def test_bytes_of_another_length_raise() -> None:
    data = random_profile(n=11, blocks=2).to_bytes()
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"not a packed profile|truncated"):
            Profile.from_bytes(data[:length])
    with pytest.raises(ValueError, match=r"expected \d+ by the header"):
        Profile.from_bytes(data + b"\0")


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("side", [0, 1])
def test_a_set_padding_bit_raises_with_its_row(block: int, side: int) -> None:
    data = random_profile(n=100, blocks=3).to_bytes()
    last = HEADER + (2 * block + side) * 13 + 12
    assert data[last] < 16
    changed = replaced(data, last, bytes([data[last] | 16]))
    with pytest.raises(ValueError, match=f"block {block}, side {'AB'[side]} has padding bits set"):
        Profile.from_bytes(changed)


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("side", [0, 1])
def test_a_row_with_another_number_of_adapters_raises_with_its_row(block: int, side: int) -> None:
    data = random_profile(n=100, k=50, blocks=3).to_bytes()
    first = HEADER + (2 * block + side) * 13
    changed = replaced(data, first, bytes([data[first] ^ 1]))
    count = 51 - 2 * (data[first] & 1)
    expected = f"block {block}, side {'AB'[side]} selects {count} adapters.*k=50"
    with pytest.raises(ValueError, match=expected):
        Profile.from_bytes(changed)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -0.25])
def test_an_invalid_soft_weight_raises_with_its_row(weight: float) -> None:
    data = random_profile(n=10, blocks=2, soft=True).to_bytes()
    changed = replaced(data, HEADER + 4 * (10 * 3 + 7), struct.pack("<f", weight))
    with pytest.raises(ValueError, match=f"block 1, side B contains the weight {weight}"):
        Profile.from_bytes(changed)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"PK\3\4", "not a packed profile"),
        (4, b"\2\0", "format 2, and this version reads 1"),
        (38, b"\7\0", r"mode of the masks is 7"),
        (40, b"\0\0", "by the header"),
        (46, struct.pack("<d", -1.0), "scale is -1.0"),
    ],
)
def test_an_invalid_header_raises(at: int, value: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Profile.from_bytes(replaced(random_profile().to_bytes(), at, value))


@pytest.mark.parametrize(("blocks", "n"), [(0, 100), (3, 0), (0, 0)])
@pytest.mark.parametrize("mode", [0, 1])
def test_a_packed_profile_without_rows_raises(mode: int, blocks: int, n: int) -> None:
    head = b"XPFT\1\0" + bytes.fromhex(BANK) + struct.pack("<HHHHd", mode, blocks, n, 0, 1.0)
    data = head + zlib.crc32(head).to_bytes(4, "little")
    with pytest.raises(ValueError, match="empty"):
        Profile.from_bytes(data)


@pytest.mark.parametrize("part", ["norm", "head"])
def test_a_truncated_or_wrong_part_is_damage(part: str) -> None:
    profile = random_profile(norm=True, head=True)
    parts: dict[str, Any] = {"norm": profile.norm_bytes(), "head": profile.head_bytes()}
    damage = stored(profile, **{part: parts[part][:-3]})
    assert f"the {part} is truncated or not a safetensors file" in str(damage)
    damage = stored(profile, **{part: save({part: np.zeros((3, 2, 5))})})
    assert re.search(f"{part}.*float64", str(damage))
    damage = stored(profile, norm=parts["head"])
    assert "the norm has the tensors ['bias', 'weight'], expected ['norm']" in str(damage)


def test_rows_with_different_numbers_of_adapters_raise_with_the_row() -> None:
    masks = random_profile(n=100, k=50).masks.copy()
    masks[2, 1, np.flatnonzero(masks[2, 1])[0]] = False
    with pytest.raises(ValueError, match=r"block 2, side B selects 49 adapters.*k=50"):
        Profile(masks, BANK, 1.0)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((3, 2, 10), bool), "empty: it selects no adapter"),
        (np.zeros((0, 2, 10), bool), "empty: its masks have the shape"),
        (np.zeros((3, 2, 0), np.float32), "empty: its masks have the shape"),
        (
            np.zeros((3, 2, 10), np.float32),
            "empty: block 0, side A gives all adapters",
        ),
        (np.ones((3, 10), bool), r"shape \(3, 10\), expected \(blocks, 2, adapters\)"),
        (np.ones((3, 3, 10), bool), r"shape \(3, 3, 10\)"),
        (np.ones((3, 2, 10)), "float64, expected a NumPy array of bool"),
        (np.ones((1, 2, 2**16), bool), "no dimension may exceed 65535"),
        ([[[True]]], "list, expected a NumPy array"),
    ],
)
def test_invalid_masks_raise(masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Profile(masks, BANK, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bank": BANK[:-1]}, "64 hexadecimal characters"),
        ({"bank": BANK.upper()}, "64 hexadecimal characters"),
        ({"bank": bytes.fromhex(BANK)}, "64 hexadecimal characters"),
        ({"scale": 0.0}, "the scale is 0.0, expected a positive number"),
        ({"scale": float("nan")}, "the scale is nan"),
        ({"scale": float("inf")}, "the scale is inf"),
        ({"norm": np.ones((2, 2, 5), np.float32)}, r"\(2, 2, 5\), expected \(3, 2, b\)"),
        ({"norm": np.ones((3, 2), np.float32)}, r"\(3, 2\), expected \(3, 2, b\)"),
        ({"norm": np.full((3, 2, 5), np.nan, np.float32)}, "norm contains NaN or infinite"),
        ({"head": {}}, "pass head=None if it is shared"),
        ({"head": {"bias": np.ones(3)}}, "bias of the head has the type float64"),
        (
            {"head": {"bias": np.array([np.inf], np.float32)}},
            "bias of the head contains NaN",
        ),
    ],
)
def test_other_invalid_parts_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(random_profile(), **changes)


def test_profiles_with_equal_parts_are_equal() -> None:
    profile = random_profile(norm=True, head=True)
    assert profile == random_profile(norm=True, head=True)
    assert profile != "a profile"
    head = {**profile.head, "bias": profile.head["bias"] + 1}  # type: ignore[dict-item]
    for changes in (
        {"masks": ~profile.masks},
        {"bank": OTHER_BANK},
        {"scale": 2.0},
        {"norm": None},
        {"norm": profile.norm + 1},
        {"head": None},
        {"head": head},
        {"head": {"weight": head["weight"]}},
    ):
        assert dataclasses.replace(profile, **changes) != profile, changes
    with pytest.raises(TypeError, match="unhashable"):
        hash(profile)


def test_hard_and_soft_masks_with_equal_values_differ() -> None:
    hard = random_profile(n=2, k=1)
    assert dataclasses.replace(hard, masks=hard.masks.astype(np.float32)) != hard


# Specification of X-PEFT, section 2: N, bytes of hard and of soft masks.
@pytest.mark.parametrize(
    ("n", "hard", "soft"),
    [
        (100, 312, 9_600),
        (150, 456, 14_400),
        (200, 600, 19_200),
        (400, 1_200, 38_400),
        (800, 2_400, 76_800),
    ],
)
def test_bytes_are_those_of_the_specification(n: int, hard: int, soft: int) -> None:
    for is_soft, expected in ((False, hard), (True, soft)):
        profile = random_profile(n=n, blocks=12, soft=is_soft)
        assert profile.bytes_by_part() == {"masks": expected, "norm": 0, "head": 0}
        assert len(profile.to_bytes()) == HEADER + expected + 4


def test_bytes_of_norm_and_head() -> None:
    masks = random_profile(n=100, blocks=12).masks
    norm = np.ones((12, 2, 48), np.float32)
    head = {"weight": np.ones((15, 768), np.float32), "bias": np.ones(15, np.float32)}
    profile = Profile(masks, BANK, 1.0, norm, head)
    assert profile.bytes_by_part() == {"masks": 312, "norm": 4_608, "head": 46_140}
