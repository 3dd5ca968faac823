"""Patterns: how many consecutive blocks each group of a design has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import Literal, NamedTuple, get_args

from lightning_pelt.utils.errors import unknown

Pattern = Literal["increasing", "uniform", "decreasing", "spindle", "bottleneck"]
Stacks = Literal["concat", "per_stack"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)


class Block(NamedTuple):
    """A block by the name of its stack and its number in the stack.

    Example:
        >>> print(Block("decoder", 3))
        block 3 of the decoder
    """

    stack: str
    number: int

    def __str__(self) -> str:
        return f"block {self.number} of the {self.stack}"


class Grouping(NamedTuple):
    """Sizes of groups, with all patterns that have these sizes at one depth.

    Attributes:
        names: the patterns.
        sizes: blocks per group, one tuple for each stack that is grouped separately.

    Example:
        >>> distinct_groupings(6)[1]
        Grouping(names=('uniform', 'spindle'), sizes=((1, 2, 2, 1),))
    """

    names: tuple[Pattern, ...]
    sizes: tuple[tuple[int, ...], ...]


def proportions(pattern: str, groups: int = 4) -> tuple[int, ...]:
    """The numbers to which the sizes of the groups are proportional.

    With four groups, as in the paper: 1:2:3:4, 1:1:1:1, 4:3:2:1, 1:2:2:1, 2:1:1:2. With another
    number of groups a spindle grows by one towards the middle, and a bottleneck shrinks by one.

    Raises:
        ValueError: the pattern is unknown, or ``groups`` is less than 1.
    """
    if groups < 1:
        raise ValueError(f"groups={groups}: a design has at least one group of blocks")
    rising = range(1, groups + 1)
    to_the_nearer_end = [min(i, groups + 1 - i) for i in rising]
    by_pattern: dict[str, Sequence[int]] = {
        "increasing": rising,
        "uniform": [1] * groups,
        "decreasing": rising[::-1],
        "spindle": to_the_nearer_end,
        "bottleneck": [max(to_the_nearer_end) + 1 - i for i in to_the_nearer_end],
    }
    if pattern not in by_pattern:
        raise unknown("pattern", pattern, PATTERNS)
    return tuple(by_pattern[pattern])


def group_sizes(pattern: str, depth: int, groups: int = 4) -> tuple[int, ...]:
    """Blocks per group: ``depth`` in proportion to :func:`proportions`, by largest remainder.

    Every group has at least one block. Of equal remainders the one nearer to the middle is served
    first, then the earlier one.

    Args:
        pattern: one of :data:`PATTERNS`.
        depth: number of blocks.
        groups: number of groups.

    Raises:
        ValueError: the pattern is unknown, or there are fewer blocks than groups.
    """
    ratio = proportions(pattern, groups)
    if depth < groups:
        raise ValueError(
            f"{depth} blocks cannot be shared among {groups} groups, each of at least one: take a "
            f"backbone of {groups} or more blocks, or at most {max(depth, 1)} groups"
        )
    sizes, whole = [1] * groups, sum(ratio)

    def priority(group: int) -> tuple[int, int, int]:
        remainder = (
            depth * ratio[group] - sizes[group] * whole
        )  # an integer, so that ties are exact
        return remainder, -abs(2 * group + 1 - groups), -group

    for _ in range(depth - groups):
        sizes[max(range(groups), key=priority)] += 1
    return tuple(sizes)


def distinct_groupings(
    depth: int | Sequence[int], groups: int = 4, patterns: Sequence[str] = PATTERNS
) -> tuple[Grouping, ...]:
    """The different groupings among ``patterns``, each with the names of all its patterns.

    At depth 6, for example, four groups of ``uniform`` and of ``spindle`` are both 1, 2, 2, 1.

    Args:
        depth: number of blocks; one number per stack if each stack is grouped separately.
        groups: number of groups.
        patterns: the patterns to compare.

    Raises:
        ValueError: a pattern is unknown, or a stack has fewer blocks than groups.
    """
    depths = [depth] if isinstance(depth, int) else list(depth)
    names: dict[tuple[tuple[int, ...], ...], list[Pattern]] = {}
    for pattern in dict.fromkeys(patterns):
        sizes = tuple(group_sizes(pattern, each, groups) for each in depths)
        names.setdefault(sizes, []).append(pattern)  # type: ignore[arg-type]
    return tuple(Grouping(tuple(patterns), sizes) for sizes, patterns in names.items())


def groupings_to_compare(
    patterns: Sequence[str], depth: int | Sequence[int], groups: int = 4
) -> tuple[Grouping, ...]:
    """The distinct groupings among ``patterns``, at least two.

    Raises:
        ValueError: as :func:`distinct_groupings`, or all patterns are the same grouping.
    """
    found = distinct_groupings(depth, groups, patterns)
    if len(found) < 2:
        counts = "; ".join(", ".join(map(str, each)) for each in found[0].sizes) if found else ""
        others = [g.names[0] for g in distinct_groupings(depth, groups) if g not in found]
        others = [name for name in others if name not in patterns]
        remedy = f"add {' or '.join(others)}" if others else "take a deeper backbone"
        raise ValueError(
            f"there is nothing to compare among {', '.join(patterns) or 'no patterns'}: at depth "
            f"{depth} all of them have groups of {counts or 'nothing'} blocks; {remedy}"
        )
    return found


def layout(
    pattern: str, depths: Mapping[str, int], groups: int = 4, *, stacks: str = "concat"
) -> tuple[tuple[Block, ...], ...]:
    """The blocks of every group.

    Args:
        pattern: one of :data:`PATTERNS`.
        depths: number of blocks of each stack by its name, in the order in which the stacks run.
        groups: number of groups.
        stacks: ``concat`` groups all stacks as one sequence, so the first groups of an
            encoder-decoder are in the encoder and the last ones in the decoder. ``per_stack``
            applies the pattern to each stack, and a group is the union of its parts.

    Raises:
        ValueError: the pattern or ``stacks`` is unknown, or there are fewer blocks than groups.
    """
    if stacks not in get_args(Stacks):
        raise unknown("mode of grouping stacks", stacks, get_args(Stacks))
    by_stack = [[Block(name, i) for i in range(depth)] for name, depth in depths.items()]
    sequences = by_stack if stacks == "per_stack" else [list(chain(*by_stack))]
    found: list[list[Block]] = [[] for _ in range(groups)]
    for sequence in sequences:
        ends = accumulate(group_sizes(pattern, len(sequence), groups), initial=0)
        for group, (start, end) in zip(found, pairwise(ends), strict=True):
            group += sequence[start:end]
    return tuple(map(tuple, found))
