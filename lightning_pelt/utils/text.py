"""Numbers as text."""

from __future__ import annotations


def readable_bytes(size: float) -> str:
    """A size in binary units.

    >>> readable_bytes(5_242_880)
    '5.0 MiB'
    """
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def readable_duration(seconds: float) -> str:
    """A duration in the largest unit that fits into it at least twice.

    >>> [readable_duration(seconds) for seconds in (12, 2040, 20_160, 673_920)]
    ['12 s', '34 min', '5.6 h', '7.8 days']
    """
    for unit, size, digits in (("days", 86_400, 1), ("h", 3_600, 1), ("min", 60, 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
