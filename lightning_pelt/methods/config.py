"""Configured objects as plain data, and plain data as configured objects."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

from lightning_pelt.methods._argument_types import refuse_wrong_types
from lightning_pelt.utils.errors import unknown


class Configured:
    """An object that recipes and checkpoints name by its class and its arguments.

    Methods, plans, banks and tasks are configured objects. A frozen dataclass of plain data needs
    nothing more; other classes override :meth:`init_args`.

    Example:
        >>> from lightning_pelt import IA3
        >>> IA3(sites=["key"]).to_config()["class_path"]
        'lightning_pelt.IA3'
    """

    def to_config(self) -> dict[str, Any]:
        """The object as plain data: ``class_path`` and ``init_args``, for :func:`rebuild`."""
        return {"class_path": public_path(type(self)), "init_args": self.init_args()}

    def init_args(self) -> dict[str, Any]:
        """The arguments of the constructor as plain data."""
        return _fields(self)


@dataclasses.dataclass(frozen=True)
class Nested:
    """A frozen dataclass that is written as a plain mapping: the arguments tell the class.

    It is a dataclass itself, so that jsonargparse writes its children as plain mappings too.
    """


def public_path(cls: type) -> str:
    """The shortest path of ``cls``: from its package's root where that exports it."""
    package = cls.__module__.partition(".")[0]
    if getattr(sys.modules[package], cls.__name__, None) is cls:
        return f"{package}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def to_plain(value: Any) -> Any:
    """``value`` as data that JSON and YAML can write."""
    if isinstance(value, Configured):
        return value.to_config()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def rebuild(value: Any) -> Any:
    """The objects that plain data of :func:`to_plain` describes.

    Classes of other packages must have been imported before. A configuration names classes, but it
    never makes Python import a module.

    Raises:
        ValueError: an unknown class or argument, or an argument of another type.
    """
    if isinstance(value, list):
        return [rebuild(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "class_path" in value:
        cls, given = _find_class(value["class_path"]), value.get("init_args", {})
    else:
        cls, given = _nested_class(value), value
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"{cls.__name__} has init_args={given!r}, expected values by name")
    arguments = {name: rebuild(item) for name, item in given.items()}
    refuse_wrong_types(cls, arguments)
    try:
        return cls(**arguments)
    except ValueError:
        raise
    except Exception as error:  # a constructor of another package may raise anything
        raise ValueError(f"{cls.__name__} cannot be built from {arguments}: {error}") from error


def _fields(value: Any) -> dict[str, Any]:
    return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}


def _nested_class(arguments: Mapping[str, Any]) -> type:
    """The nested class with these arguments, or the one with most of them."""
    classes = Nested.__subclasses__()
    fields = [{field.name for field in dataclasses.fields(cls)} for cls in classes]
    best = max(range(len(classes)), key=lambda i: (len(fields[i] & {*arguments}), -len(fields[i])))
    # Without arguments: the class whose fields all have defaults.
    return classes[best] if arguments else next(c for c in classes if _needs_nothing(c))


def _needs_nothing(cls: Any) -> bool:
    missing = dataclasses.MISSING
    return all(
        field.default is not missing or field.default_factory is not missing
        for field in dataclasses.fields(cls)
    )


def _find_class(path: str) -> type[Configured]:
    """The configured class at ``path``. This package's classes are found by their public names."""
    module, _, name = str(path).rpartition(".")
    package = sys.modules[__name__.partition(".")[0]]
    found = getattr(sys.modules.get(module), name, None)
    if not _is_configured(found) and module.partition(".")[0] == package.__name__:
        found = getattr(package, name, None)
    if not _is_configured(found):
        public = [name for name in package.__all__ if _is_configured(getattr(package, name))]
        raise unknown("class of a configuration", path, [f"{package.__name__}.{n}" for n in public])
    return found


def _is_configured(value: Any) -> TypeGuard[type[Configured]]:
    return isinstance(value, type) and issubclass(value, Configured)
