"""Reads the YAML of recipes: a mistake is an error that names the file and the line."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 10_000_000
MAX_DEPTH = 100
MAX_ALIASED = 10_000  # values that aliases repeat
# libyaml's parser, if PyYAML was built with it.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RecipeError(yaml.YAMLError, ValueError):
    """YAML that no recipe needs: deep nesting, many repeated values, a key that occurs twice."""


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe.

    Raises:
        ValueError: as :func:`read_yaml`, or it is not a mapping.
    """
    content = read_yaml(Path(path))
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path}: expected options by name, such as `model:`, and it is {_kind(content)}"
        )
    return content


def read_yaml(path: Path, seen: Collection[Path] = ()) -> Any:
    """Read a YAML file, and check the files that it names (``plan: my_plan.yaml``).

    Args:
        path: of the file.
        seen: files that have been read already.

    Raises:
        ValueError: a file is not UTF-8, or not YAML that :func:`check_yaml` accepts; the message
            names the file.
    """
    try:
        text = _read_text(path)
        check_yaml(text)
        content = yaml.load(text, Loader=LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {_reason(error)}") from error
    for other in _named_files(content, path.parent):
        if other not in (*seen, path):
            read_yaml(other, (*seen, path))
    return content


def check_yaml(text: str) -> None:
    """Check YAML in one pass over its events, before anything is built from it.

    Raises:
        RecipeError: it nests too deeply, its aliases repeat too many values, or a key occurs twice.
        yaml.YAMLError: it is not YAML.
    """
    check = _Check()
    for event in yaml.parse(text, Loader=LOADER):
        check.see(event)


@dataclass
class _Node:
    """A collection that is not complete yet.

    Attributes:
        anchor: its name for aliases.
        size: number of values in it so far, those that aliases repeat included.
        keys: of a mapping: the lines of its keys.
        value_next: of a mapping: whether the next node is the value of a key.
    """

    anchor: str | None
    size: int = 1
    keys: dict[str, int] | None = None
    value_next: bool = False


@dataclass
class _Check:
    open: list[_Node] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)  # of complete nodes, by anchor
    aliased: int = 0

    def see(self, event: yaml.Event) -> None:
        """Check the next event."""
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self._repeat(event.anchor, line)
        elif isinstance(event, yaml.ScalarEvent):
            self._refuse_second(event.value, line)
            self._complete(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(self.open) == MAX_DEPTH:
                raise RecipeError(f"line {line}: it nests deeper than {MAX_DEPTH} levels")
            mapping = isinstance(event, yaml.MappingStartEvent)
            self.open.append(_Node(event.anchor, keys={} if mapping else None))
        elif isinstance(event, yaml.CollectionEndEvent):
            node = self.open.pop()
            self._complete(node.anchor, node.size)

    def _repeat(self, anchor: str, line: int) -> None:
        if any(node.anchor == anchor for node in self.open):
            raise RecipeError(f"line {line}: the alias *{anchor} is inside what it repeats")
        if anchor not in self.sizes:  # on a command line it may be a glob: `*attention`
            raise yaml.YAMLError(f"line {line}: the alias *{anchor} has no &{anchor} before it")
        self.aliased += self.sizes[anchor]
        if self.aliased > MAX_ALIASED:
            raise RecipeError(f"line {line}: its aliases repeat more than {MAX_ALIASED:,} values")
        self._complete(None, self.sizes[anchor])

    def _refuse_second(self, key: str, line: int) -> None:
        node = self.open[-1] if self.open else None
        if node is None or node.keys is None or node.value_next:
            return
        if key in node.keys:
            raise RecipeError(
                f"line {line}: the key {key!r} occurs twice, first in line {node.keys[key]}"
            )
        node.keys[key] = line

    def _complete(self, anchor: str | None, size: int) -> None:
        if anchor is not None:
            self.sizes[anchor] = size
        if self.open:
            self.open[-1].size += size
            self.open[-1].value_next = not self.open[-1].value_next


def _read_text(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise RecipeError(f"it has {size:,} bytes, and a recipe has at most {MAX_BYTES:,}")
    return path.read_text(encoding="utf-8-sig")


def _kind(content: Any) -> str:
    if content is None:
        return "empty"
    return "a list" if isinstance(content, list) else f"the value {str(content)[:40]!r}"


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return (
            f"it is not UTF-8: the byte {error.object[error.start]:#04x} at position {error.start}"
        )
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return str(error)


def _named_files(value: Any, folder: Path) -> list[Path]:
    """The YAML files that the strings in ``value`` name."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [path for item in value for path in _named_files(item, folder)]
    named = isinstance(value, str) and value.endswith((".yaml", ".yml"))
    return [folder / value] if named and (folder / value).is_file() else []
