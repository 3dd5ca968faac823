"""The distribution of a score over many users, as text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tabulate import tabulate

QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1}
BINS, WIDTH, WORST = 10, 40, 10  # bars of the histogram, their greatest length, and named users


def distribution(scores: Mapping[str, float]) -> str:
    """Quantiles, a histogram over the range of the scores, and the users with the worst scores.

    Args:
        scores: at least one, by user.

    Example:
        >>> print(distribution({f"u{i}": i / 100 for i in range(1, 101)}).splitlines()[1])
        0.0100  0.0595  0.2575    0.5050  0.7525  0.9505  1.0000  0.5050
    """
    values = np.fromiter(scores.values(), dtype=float)
    found = np.quantile(values, [*QUANTILES.values()])
    numbers = [f"{value:.4f}" for value in (*found, values.mean())]
    quantiles = tabulate(
        [numbers], [*QUANTILES, "mean"], tablefmt="plain", disable_numparse=True, stralign="right"
    )
    worst = sorted(scores, key=lambda id: (scores[id], id))[:WORST]
    named = "\n".join(f"{scores[id]:.4f}  {id}" for id in worst)
    return f"{quantiles}\n\n{_histogram(values)}\n\nThe lowest:\n{named}"


def _histogram(values: np.ndarray) -> str:
    counts, edges = np.histogram(values, bins=BINS)
    longest = len(str(counts.max()))
    return "\n".join(
        f"{low:.4f} to {high:.4f}  {count:>{longest}}  "
        + "#" * -(-int(count) * WIDTH // int(counts.max()))
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )
