"""Class paths of earlier versions, replaced by the public names of today."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from lightning_pelt.cli.recipe_file import check_yaml

# A dotted path into this package that names a module, not only the package's root.
PATH = re.compile(r"(?<![\w./-])lightning_pelt(?:\.\w+){2,}")
PUBLIC = (
    "lightning_pelt",
    "lightning_pelt.data",
    "lightning_pelt.tasks",
    "lightning_pelt.callbacks",
)
# The parser mode that reads YAML with the class paths of earlier versions.
MODE = "recipe"


def update_paths(value: Any) -> Any:
    """Replace class paths that no longer exist, in text or in plain data.

    A path whose class is not public either is left as it is, for the parser to refuse.

    Example:
        >>> update_paths("class_path: lightning_pelt.plan.UniPELT")
        'class_path: lightning_pelt.UniPELT'
    """
    if isinstance(value, str):
        return PATH.sub(lambda found: _current(found[0]), value)
    if isinstance(value, Mapping):
        return {key: update_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [update_paths(item) for item in value]
    return value


@cache
def _current(path: str) -> str:
    """``path`` if it can be imported, else the public path of the class with the same name."""
    module, _, name = path.rpartition(".")
    if _has(module, name):
        return path
    packages = [package for package in PUBLIC if _has(package, name)]
    # `Classification` is public at the root, `TextToText` only in `data` and in `tasks`.
    nearest = sorted(packages, key=lambda package: not module.startswith(f"{package}."))
    return f"{nearest[0]}.{name}" if nearest else path


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(import_module(module), name)
    except ImportError:
        return False


def _load(text: str) -> Any:
    check_yaml(text)
    return get_loader("yaml")(update_paths(text))


set_loader(MODE, _load, exceptions=(yaml.YAMLError,))
