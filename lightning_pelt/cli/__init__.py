"""The command line, ``lightning-pelt``: one file a command."""

from lightning_pelt.cli.base import PELTCLI

__all__ = ["PELTCLI"]
