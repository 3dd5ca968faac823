"""The console script: answers ``--help`` at once, and imports the rest for everything else."""

from __future__ import annotations

import sys
from importlib import import_module

from lightning_pelt.cli import overview


def script() -> None:
    """Run ``lightning-pelt``; see :func:`lightning_pelt.cli.main.script`."""
    status = overview.show(sys.argv[1:])
    if status is not None:
        raise SystemExit(status)
    import_module("lightning_pelt.cli.main").script()
