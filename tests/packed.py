"""Packed rows taken apart again."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor


def by_example(
    batch: dict[str, Tensor], values: Tensor
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """The tokens of every example, and its part of ``values`` (B, T, ...).

    Examples of one token are padding.
    """
    for ids, positions, row in zip(batch["input_ids"], batch["position_ids"], values, strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        for begin, end in pairwise(starts):
            if end - begin > 1:
                yield tuple(ids[begin:end].tolist()), row[begin:end]
