"""What a wrong name is answered with: the name, the nearest one, and all that exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(kind: str, name: object, options: Iterable[object]) -> ValueError:
    """A ``ValueError`` for a ``name`` that is not among ``options``.

    >>> unknown("method", "lorra", ["lora", "prefix"])
    ValueError("unknown method 'lorra': did you mean 'lora'? It must be one of: lora, prefix")
    """
    known = [str(option) for option in options]
    nearest = get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f" did you mean {nearest[0]!r}?" if nearest else ""
    return ValueError(
        f"unknown {kind} {name!r}:{hint} It must be one of: {', '.join(known) or '(none exist)'}"
    )
