"""The JSON schema of the recipes that a parser reads, for editors."""

from __future__ import annotations

from typing import Any

import lightning.pytorch
from jsonargparse import ArgumentParser
from jsonargparse._completions_jsonschema import ParserJsonschema
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from lightning_pelt.cli.plugins import load_plugins
from lightning_pelt.methods.config import public_path

# The classes whose subclasses a schema lists: those that recipes name. Listing all subclasses of,
# say, `torch.nn.Module` would make it a hundred times as large.
LISTED = (Callback, Logger)
HOMES = ("lightning_pelt.", lightning.pytorch.__name__ + ".")
LINKED = ("backbone",)  # arguments that data modules get from the model
DOTTED = {"type": "string", "pattern": r"[./]"}  # a class of another package, or a file


class RecipeSchema(ParserJsonschema):
    """The generator of jsonargparse, for the class paths that recipes have.

    Classes of this package, of Lightning and of plugins are listed by their short names, by their
    public paths and by the paths of their modules. Classes of other packages are accepted by their
    paths, with any arguments.
    """

    def __init__(self) -> None:
        super().__init__()
        self.plugins = list(load_plugins().values())

    def subclass_def(self, class_type: Any, action: Any) -> dict:
        if not _is_listed(class_type):
            return {}
        known = {k for k in _subclasses(class_type) if _is_known(k) or k in self.plugins}
        found = sorted(known, key=lambda each: each.__name__)
        names = [name for kind in found for name in _names(kind)]
        schemas: list[dict] = [{"enum": names}, DOTTED]
        for kind in found:
            schemas.append(self._of_class(kind, action))
        other = self.unknown_class_path_schema()
        other["properties"]["class_path"] = {**DOTTED, "not": {"enum": names}}
        return {"anyOf": [*schemas, other]}

    def _of_class(self, kind: type, action: Any) -> dict:
        schema = self.class_path_schema(_path(kind), action)
        schema["properties"]["class_path"] = {"enum": _names(kind)}
        arguments = schema["properties"]["init_args"]
        required = set(arguments.pop("required", ())) - set(LINKED)
        schema["required"] = ["class_path", *(["init_args"] if required else [])]
        if required:
            arguments["required"] = sorted(required)
        return schema


def recipe_schema(parser: ArgumentParser, *, title: str) -> dict[str, Any]:
    """The schema of what ``parser`` reads.

    Args:
        parser: of a command with ``--config``.
        title: of the schema.
    """
    schema = RecipeSchema().generate(parser)
    # A recipe may leave out what the command line gives.
    for group in (schema, *schema["properties"].values()):
        group.pop("required", None)
    return {"$schema": schema.pop("$schema"), "title": title, **schema}


def _is_listed(kind: Any) -> bool:
    return isinstance(kind, type) and (kind in LISTED or _is_ours(kind))


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("lightning_pelt.")


def _subclasses(kind: type) -> list[type]:
    """A class and all its subclasses."""
    children: list[type] = kind.__subclasses__()
    below = [each for child in children for each in _subclasses(child)]
    return [kind, *below]


def _is_known(kind: type) -> bool:
    """Whether a class can be built, and is of this package or of Lightning."""
    private = kind.__name__.startswith("_") or getattr(kind, "__abstractmethods__", None)
    return not private and kind.__module__.startswith(HOMES)


def _names(kind: type) -> list[str]:
    return list(dict.fromkeys([kind.__name__, public_path(kind), _path(kind)]))


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
