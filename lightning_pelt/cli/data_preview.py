"""``--print_data N``: shows the first rows of the data, and which of their tokens are trained."""

from __future__ import annotations

import os
import sys
from typing import Any

from lightning_pelt.data.preview import preview

HELP = (
    "Print this number of rows, show which of their tokens are trained, and exit. Of data whose "
    "labels are tokens."
)
SPLITS = {"fit": "train", "validate": "dev", "test": "test"}  # whose rows a command shows


def print_data(data: Any, count: int, command: str) -> None:
    """Print the first rows that a command uses; in colour on a terminal.

    The environment variable ``NO_COLOR`` switches colours off.

    Args:
        data: the data module.
        count: number of rows.
        command: a key of ``SPLITS``.

    Raises:
        ValueError: the command uses no labels, or as :func:`preview`.
    """
    if command not in SPLITS:
        raise ValueError(
            f"{command} uses rows without labels, so there are no trained tokens to show: use "
            f"--print_data with {', '.join(SPLITS)}"
        )
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(preview(data, count, split=SPLITS[command], colour=colour))
