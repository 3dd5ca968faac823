"""Fixed random choices of rows."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

SAMPLE_SEED, HOLDOUT_SEED = 0, 1


def chosen(rows: int, limit: int | None) -> np.ndarray | None:
    """The indices of a fixed random choice of ``limit`` rows, in their order; None for all rows."""
    if limit is None or limit >= rows:
        return None
    return np.sort(np.random.default_rng(SAMPLE_SEED).permutation(rows)[:limit])


def hold_out(rows: Dataset | None, share: float) -> tuple[Dataset, Dataset]:
    """Split off a fixed random share of the training rows: the remaining and the held-out rows.

    Raises:
        ValueError: there are no training rows, or the share takes all of them or none.
    """
    if rows is None:
        raise ValueError(
            f"holdout is {share} of the training rows, but there is no train split: give train="
        )
    count = round(share * len(rows))
    if not 0 < count < len(rows):
        raise ValueError(
            f"holdout={share} holds {count} of {len(rows)} training rows out: it must take at "
            "least one and leave one; change holdout, or use more rows"
        )
    order = np.random.default_rng(HOLDOUT_SEED).permutation(len(rows))
    return rows.select(np.sort(order[count:])), rows.select(np.sort(order[:count]))
