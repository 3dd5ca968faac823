"""The command line, ``lightning-pelt``: one file a command."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_pelt.cli.base import PELTCLI

__all__ = ["PELTCLI"]


def __getattr__(name: str) -> Any:
    """Import the base class when it is asked for: ``--help`` does not need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.base"), name)
