"""Methods and tasks of other packages, which recipes name like those of this one."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

GROUPS = ("lightning_pelt.methods", "lightning_pelt.tasks")


def load_plugins() -> dict[str, Any]:
    """Import what installed packages offer as entry points, so that recipes find its classes.

    A package names its classes in its ``pyproject.toml``::

        [project.entry-points."lightning_pelt.methods"]
        VeRA = "their_package.vera:VeRA"

    Returns:
        What was loaded, by the name of its entry point. A warning names one that cannot be loaded,
        and the command goes on without it.
    """
    loaded = {}
    for group in GROUPS:
        for entry in entry_points(group=group):
            try:
                loaded[entry.name] = entry.load()
            except Exception as error:  # of another package's code
                rank_zero_warn(f"{group}: {entry.name} = {entry.value} cannot be loaded: {error}")
    return loaded
