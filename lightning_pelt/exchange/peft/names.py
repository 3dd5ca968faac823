"""PEFT's rules for names of modules, and names that match exactly the modules that are meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from lightning_pelt.attach.builder import CHILD
from lightning_pelt.attach.names import plain

PREFIX = "base_model.model."  # in the names of tensors in a file: PeftModel, LoraModel


def modules_of_base(model: nn.Module) -> list[str]:
    """The paths of all modules of a fresh base: without submodules of methods and wrappers."""
    paths = (plain(f"{path}.").rstrip(".") for path, _ in model.named_modules())
    return list(dict.fromkeys(p for p in paths if p and CHILD not in p.split(".")))


def targets(names: str | Sequence[str], path: str) -> bool:
    """Whether ``target_modules`` or ``exclude_modules`` match the module at ``path``.

    As ``check_target_module_exists`` of PEFT 0.21.2: a string is a regular expression for the whole
    path; the names in a list are paths or ends of paths.

    >>> targets(["query"], "encoder.layer.0.query"), targets(["query"], "encoder.subquery")
    (True, False)
    """
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return path in names or any(path.endswith(f".{name}") for name in names)


def in_saved(names: Iterable[str], path: str) -> bool:
    """Whether the module at ``path`` is, or lies in, a module of ``modules_to_save``."""
    return any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in names)


def layer_of(path: str, patterns: str | Sequence[str] | None) -> int | None:
    """The number of the layer that holds ``path``, for ``layers_to_transform``.

    Args:
        path: of a module.
        patterns: ``layers_pattern``, the names of lists of layers; None for any name.

    >>> layer_of("model.layers.3.mlp.experts.1.up", None), layer_of("model.h.3.up", ["layers"])
    (3, None)
    """
    names = [patterns] if isinstance(patterns, str) else list(patterns or [])
    for pattern in [rf"(?:^|.*?\.){name}\.(\d+)\." for name in names] or [r".*?\.[^.]*\.(\d+)\."]:
        if found := re.match(pattern, path):
            return int(found[1])
    return None


def pattern_key(keys: Iterable[str], path: str) -> str | None:
    """The key of ``rank_pattern`` or ``alpha_pattern`` that holds for the module at ``path``.

    As ``get_pattern_key`` of PEFT: the first key that matches the path or an end of it.
    """
    return next((key for key in keys if re.match(rf"(.*\.)?({key})$", path)), None)


def key_for(path: str, others: Iterable[str]) -> str:
    """A key of a pattern that holds for ``path`` and for none of ``others``.

    The path itself, which every version of PEFT reads, if that matches no other module; else an
    anchored regular expression.

    >>> key_for("h.1.query", ["h.2.query", "h.1.query"])
    'h.1.query'
    >>> key_for("h.1.query", ["deep.h.1.query"])
    '^h\\\\.1\\\\.query'
    """
    if any(other != path and pattern_key([path], other) for other in others):
        return f"^{re.escape(path)}"
    return path


def name_exactly(wanted: Iterable[str], modules: Sequence[str]) -> list[str] | str:
    """``target_modules`` that match the modules ``wanted`` and no others.

    Args:
        wanted: paths of modules.
        modules: paths of all modules of the base.

    Returns:
        The last parts of the paths, as people write them, if these are exact; else the paths; else
        a regular expression, where a path is the end of another one.

    >>> modules = ["h.0.query", "h.0.value", "h.1.query", "h.1.value"]
    >>> name_exactly(["h.0.query", "h.1.query"], modules)
    ['query']
    >>> name_exactly(["h.0.query"], modules)
    ['h.0.query']
    >>> name_exactly(["h.0.query"], [*modules, "deep.h.0.query"])
    '(h\\\\.0\\\\.query)'
    """
    paths = sorted(set(wanted))
    short = sorted({path.rpartition(".")[2] for path in paths})
    for names in (short, paths):
        if not any(name.isdigit() for name in names) and _exact(names, paths, modules):
            return names
    return f"({'|'.join(map(re.escape, paths))})"


def _exact(names: Sequence[str], wanted: Sequence[str], modules: Sequence[str]) -> bool:
    asked = set(wanted)
    return all(targets(names, path) == (path in asked) for path in modules)
