"""The error for an unknown name: it names the nearest option and lists all options."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown(
    kind: str, name: object, options: Iterable[object], *, remedy: str | None = None
) -> ValueError:
    """A ``ValueError`` for a ``name`` that is not among ``options``.

    Args:
        kind: what the name should be the name of.
        name: the unknown name.
        options: the names that exist.
        remedy: replaces the list of options, for options that are too many to list.

    >>> unknown("method", "lorra", ["lora", "prefix"])
    ValueError("unknown method 'lorra': did you mean 'lora'? It must be one of: lora, prefix")
    """
    known = [str(option) for option in options]
    folded = {option.casefold(): option for option in reversed(known)}
    nearest = get_close_matches(str(name).casefold(), folded, n=1, cutoff=0.5)
    hint = f" did you mean {folded[nearest[0]]!r}?" if nearest else ""
    remedy = remedy or f"It must be one of: {', '.join(known) or '(none exist)'}"
    return ValueError(f"unknown {kind} {name!r}:{hint} {remedy}")
