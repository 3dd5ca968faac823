"""The names of adapters."""

from __future__ import annotations

import re
from collections.abc import Collection

ALLOWED = re.compile(r"[\w.+-]+")


def check_name(name: str, taken: Collection[str]) -> None:
    """Raise a ``ValueError`` unless ``name`` may be that of a new adapter."""
    if not isinstance(name, str) or not ALLOWED.fullmatch(name):
        raise ValueError(
            f"an adapter is named {name!r}, expected letters, digits, '_', '-', '+' and '.', such "
            "as 'ann' or 'sst2-lora'"
        )
    if name in taken:
        raise ValueError(
            f"there is an adapter named {name!r} already: choose another name, or call "
            f"adapters.delete({name!r}) first"
        )
