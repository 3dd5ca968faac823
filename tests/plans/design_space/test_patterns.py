"""Patterns: the specification's table, errors, and the grouping of encoder-decoders."""

from __future__ import annotations

from itertools import chain
from math import floor

import pytest

from lightning_pelt.plans.design_space import (
    PATTERNS,
    Block,
    distinct_groupings,
    group_sizes,
    groupings_to_compare,
    layout,
)

# Section 1.1 of the specification: depth, then the five patterns in this order.
ORDER = ("increasing", "uniform", "decreasing", "spindle", "bottleneck")
TABLE = {
    6: "1,1,2,2  1,2,2,1  2,2,1,1  1,2,2,1  2,1,1,2",
    12: "1,2,4,5  3,3,3,3  5,4,2,1  2,4,4,2  4,2,2,4",
    16: "2,3,5,6  4,4,4,4  6,5,3,2  3,5,5,3  5,3,3,5",
    24: "2,5,7,10  6,6,6,6  10,7,5,2  4,8,8,4  8,4,4,8",
    28: "3,6,8,11  7,7,7,7  11,8,6,3  5,9,9,5  9,5,5,9",
    32: "3,6,10,13  8,8,8,8  13,10,6,3  5,11,11,5  11,5,5,11",
    48: "5,10,14,19  12,12,12,12  19,14,10,5  8,16,16,8  16,8,8,16",
}
CELLS = [
    (depth, pattern, tuple(map(int, cell.split(","))))
    for depth, row in TABLE.items()
    for pattern, cell in zip(ORDER, row.split(), strict=True)
]
RATIOS = {
    "increasing": (1, 2, 3, 4),
    "uniform": (1, 1, 1, 1),
    "decreasing": (4, 3, 2, 1),
    "spindle": (1, 2, 2, 1),
    "bottleneck": (2, 1, 1, 2),
}


@pytest.mark.parametrize(("depth", "pattern", "expected"), CELLS)
def test_group_sizes_are_those_of_the_table(
    depth: int, pattern: str, expected: tuple[int, ...]
) -> None:
    assert group_sizes(pattern, depth) == expected


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sizes_are_the_quota_rounded_at_every_depth(pattern: str) -> None:
    """By largest remainder a size is its quota rounded down or up, and at least 1."""
    for depth in range(4, 101):
        found = group_sizes(pattern, depth)
        quotas = [depth * ratio / sum(RATIOS[pattern]) for ratio in RATIOS[pattern]]
        assert sum(found) == depth
        for size, quota in zip(found, quotas, strict=True):
            assert size in (floor(quota), floor(quota) + 1, 1)
            assert size >= 1


def test_increasing_rises_strictly_from_depth_10_on() -> None:
    for depth in range(4, 101):
        found = group_sizes("increasing", depth)
        assert (sorted(set(found)) == list(found)) == (depth >= 10)


@pytest.mark.parametrize(
    ("pattern", "depth", "groups", "expected"),
    [
        ("spindle", 8, 3, (2, 4, 2)),
        ("bottleneck", 10, 3, (4, 2, 4)),
        ("spindle", 9, 5, (1, 2, 3, 2, 1)),
        ("bottleneck", 11, 5, (3, 2, 1, 2, 3)),
        ("increasing", 15, 5, (1, 2, 3, 4, 5)),
        ("decreasing", 3, 2, (2, 1)),
        ("uniform", 7, 1, (7,)),
        ("increasing", 6, 6, (1, 1, 1, 1, 1, 1)),
    ],
)
def test_any_number_of_groups(
    pattern: str, depth: int, groups: int, expected: tuple[int, ...]
) -> None:
    assert group_sizes(pattern, depth, groups) == expected


def test_groupings_name_all_patterns_of_equal_sizes() -> None:
    found = {grouping.names: grouping.sizes for grouping in distinct_groupings(6)}
    assert found == {
        ("increasing",): ((1, 1, 2, 2),),
        ("uniform", "spindle"): ((1, 2, 2, 1),),
        ("decreasing",): ((2, 2, 1, 1),),
        ("bottleneck",): ((2, 1, 1, 2),),
    }


def test_patterns_coincide_only_at_depths_4_5_6_and_10() -> None:
    assert [d for d in range(4, 101) if len(distinct_groupings(d)) < 5] == [4, 5, 6, 10]


def test_patterns_of_separate_stacks_coincide_only_if_they_do_in_all_of_them() -> None:
    """Uniform and spindle are equal with 6 blocks, and differ with 12."""
    assert len(distinct_groupings([6, 6])) == 4
    assert distinct_groupings([6, 12], patterns=["uniform", "spindle"])[1].sizes == (
        (1, 2, 2, 1),
        (2, 4, 4, 2),
    )


def test_comparing_patterns_of_equal_sizes_is_an_error() -> None:
    message = (
        r"nothing to compare among uniform, spindle: at depth 6 all of them have groups of "
        r"1, 2, 2, 1 blocks; add increasing or decreasing or bottleneck"
    )
    with pytest.raises(ValueError, match=message):
        groupings_to_compare(["uniform", "spindle"], 6)
    with pytest.raises(ValueError, match="take a deeper backbone"):
        groupings_to_compare(PATTERNS, 4)
    with pytest.raises(ValueError, match=r"at depth \[6, 6\]"):
        groupings_to_compare(["uniform", "spindle"], [6, 6])


def test_patterns_of_equal_sizes_are_compared_as_one() -> None:
    found = groupings_to_compare(["uniform", "spindle", "bottleneck"], 6)
    assert [grouping.names for grouping in found] == [("uniform", "spindle"), ("bottleneck",)]
    assert len(groupings_to_compare(["uniform", "spindle"], 12)) == 2


def test_too_few_blocks_name_what_fits() -> None:
    message = r"3 blocks .* 4 groups.*take a backbone of 4 or more blocks, or at most 3 groups"
    with pytest.raises(ValueError, match=message):
        group_sizes("spindle", 3)
    with pytest.raises(ValueError, match="groups=0"):
        group_sizes("spindle", 3, 0)


def test_a_misspelt_pattern_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown pattern 'spindel': did you mean 'spindle'"):
        group_sizes("spindel", 12)
    with pytest.raises(ValueError, match=r"did you mean 'per_stack'"):
        layout("spindle", {"encoder": 12}, stacks="per_stak")


T5_BASE = {"encoder": 12, "decoder": 12}


def test_concat_puts_the_first_groups_into_the_encoder() -> None:
    found = layout("spindle", T5_BASE)
    blocks = [Block(name, i) for name in ("encoder", "decoder") for i in range(12)]
    assert list(chain(*found)) == blocks
    assert [len(group) for group in found] == [4, 8, 8, 4]
    assert [{block.stack for block in group} for group in found] == [
        {"encoder"},
        {"encoder"},
        {"decoder"},
        {"decoder"},
    ]


def test_per_stack_groups_have_blocks_of_both_stacks() -> None:
    found = layout("spindle", T5_BASE, stacks="per_stack")
    ranges = [range(2), range(2, 6), range(6, 10), range(10, 12)]
    assert found == tuple(
        tuple(Block(name, i) for name in ("encoder", "decoder") for i in numbers)
        for numbers in ranges
    )


def test_per_stack_needs_the_depth_in_every_stack() -> None:
    depths = {"encoder": 12, "decoder": 3}
    with pytest.raises(ValueError, match="3 blocks cannot be shared among 4 groups"):
        layout("spindle", depths, stacks="per_stack")
    assert sum(map(len, layout("spindle", depths))) == 15
