"""Tiny models, and a pytest suite that every tuning method passes.

::

    from lightning_pelt.testing import MethodConformance

    class TestMine(MethodConformance):
        method = Mine(rank=4)

    class TestMineGated(MethodConformance):
        method = Mine(rank=4, gate=Gate())
"""

from typing import TYPE_CHECKING, Any

from lightning_pelt.testing.models import (
    awaken,
    draw,
    hook_counts,
    is_ours,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
)

if TYPE_CHECKING:
    from lightning_pelt.testing.conformance import MethodConformance

__all__ = [
    "MethodConformance",
    "awaken",
    "draw",
    "hook_counts",
    "is_ours",
    "tiny_bert",
    "tiny_gpt2",
    "tiny_llama",
]


def __getattr__(name: str) -> Any:
    """The suite needs pytest, the models do not."""
    if name == "MethodConformance":
        from lightning_pelt.testing.conformance import MethodConformance

        return MethodConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
