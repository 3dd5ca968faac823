"""Patterns: how many consecutive blocks each group of a design holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import Literal, NamedTuple, get_args

from lightning_pelt.errors import unknown

Pattern = Literal["increasing", "uniform", "decreasing", "spindle", "bottleneck"]
Stacks = Literal["concat", "per_stack"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)


class Block(NamedTuple):
    """A block by the name of its stack and its number there."""

    stack: str
    number: int

    def __str__(self) -> str:
        return f"block {self.number} of the {self.stack}"


class Choice(NamedTuple):
    """A grouping that can be told apart from the others at its depth.

    Attributes:
        names: the patterns that come to it.
        sizes: blocks per group, one tuple for each stack that is grouped on its own.
    """

    names: tuple[Pattern, ...]
    sizes: tuple[tuple[int, ...], ...]


def weights(pattern: str, groups: int = 4) -> tuple[int, ...]:
    """What the sizes of the groups are proportional to.

    Of four groups, as in the paper: 1:2:3:4, 1:1:1:1, 4:3:2:1, 1:2:2:1, 2:1:1:2. Of another number,
    a spindle grows by one towards the middle, and a bottleneck shrinks by one.

    Raises:
        ValueError: an unknown pattern, or no group.
    """
    if groups < 1:
        raise ValueError(f"groups={groups}: a design has at least one group of blocks")
    rising = range(1, groups + 1)
    to_the_nearer_end = [min(i, groups + 1 - i) for i in rising]
    made: dict[str, Sequence[int]] = {
        "increasing": rising,
        "uniform": [1] * groups,
        "decreasing": rising[::-1],
        "spindle": to_the_nearer_end,
        "bottleneck": [max(to_the_nearer_end) + 1 - i for i in to_the_nearer_end],
    }
    if pattern not in made:
        raise unknown("pattern", pattern, PATTERNS)
    return tuple(made[pattern])


def sizes(pattern: str, depth: int, groups: int = 4) -> tuple[int, ...]:
    """Blocks per group: the depth in proportion to :func:`weights`, by largest remainder.

    Every group has at least one block; ties go to the middle, then to the earlier group.

    Args:
        pattern: one of :data:`PATTERNS`.
        depth: number of blocks.
        groups: number of groups.

    Raises:
        ValueError: an unknown pattern, or fewer blocks than groups.
    """
    shares = weights(pattern, groups)
    if depth < groups:
        raise ValueError(
            f"{depth} blocks cannot be shared among {groups} groups, each of at least one: take a "
            f"backbone of {groups} or more blocks, or at most {max(depth, 1)} groups"
        )
    given, whole = [1] * groups, sum(shares)

    def claim(group: int) -> tuple[int, int, int]:
        missing = depth * shares[group] - given[group] * whole  # in whole numbers: ties are exact
        return missing, -abs(2 * group + 1 - groups), -group

    for _ in range(depth - groups):
        given[max(range(groups), key=claim)] += 1
    return tuple(given)


def choices(
    depth: int | Sequence[int], groups: int = 4, patterns: Sequence[str] = PATTERNS
) -> tuple[Choice, ...]:
    """The different groupings among ``patterns``, each once with all of its names.

    At depth 6, for example, four groups of ``uniform`` and of ``spindle`` both are 1, 2, 2, 1.

    Args:
        depth: number of blocks; or one number per stack, where each stack is grouped on its own.
        groups: number of groups.
        patterns: to choose from.

    Raises:
        ValueError: an unknown pattern, or a stack of fewer blocks than groups.
    """
    depths = [depth] if isinstance(depth, int) else list(depth)
    found: dict[tuple[tuple[int, ...], ...], list[Pattern]] = {}
    for pattern in dict.fromkeys(patterns):
        resolved = tuple(sizes(pattern, each, groups) for each in depths)
        found.setdefault(resolved, []).append(pattern)  # type: ignore[arg-type]
    return tuple(Choice(tuple(names), resolved) for resolved, names in found.items())


def rivals(
    patterns: Sequence[str], depth: int | Sequence[int], groups: int = 4
) -> tuple[Choice, ...]:
    """The choices of a comparison of ``patterns``.

    Raises:
        ValueError: as :func:`choices`, or all of the patterns are one and the same grouping.
    """
    found = choices(depth, groups, patterns)
    if len(found) < 2:
        counts = "; ".join(", ".join(map(str, each)) for each in found[0].sizes) if found else ""
        others = [c.names[0] for c in choices(depth, groups) if c not in found]
        others = [name for name in others if name not in patterns]
        remedy = f"add {' or '.join(others)}" if others else "take a deeper backbone"
        raise ValueError(
            f"there is nothing to compare among {', '.join(patterns) or 'no patterns'}: at depth "
            f"{depth} all of them have groups of {counts or 'nothing'} blocks; {remedy}"
        )
    return found


def layout(
    pattern: str, depths: Mapping[str, int], groups: int = 4, stacks: str = "concat"
) -> tuple[tuple[Block, ...], ...]:
    """The blocks of every group.

    Args:
        pattern: one of :data:`PATTERNS`.
        depths: number of blocks of each stack by its name, in the order in which they run.
        groups: number of groups.
        stacks: ``concat`` groups all stacks as one sequence, so the first groups of an
            encoder-decoder are encoder and the last ones decoder; ``per_stack`` applies the pattern
            to each stack, and a group is the union of its parts.

    Raises:
        ValueError: an unknown pattern or mode, or fewer blocks than groups.
    """
    if stacks not in get_args(Stacks):
        raise unknown("mode of grouping stacks", stacks, get_args(Stacks))
    each = [[Block(name, i) for i in range(depth)] for name, depth in depths.items()]
    sequences = each if stacks == "per_stack" else [list(chain(*each))]
    found: list[list[Block]] = [[] for _ in range(groups)]
    for sequence in sequences:
        ends = accumulate(sizes(pattern, len(sequence), groups), initial=0)
        for group, (start, end) in zip(found, pairwise(ends), strict=True):
            group += sequence[start:end]
    return tuple(map(tuple, found))
