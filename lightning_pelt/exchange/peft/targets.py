"""Whether the modules in a file are those that its configuration targets, and that a model has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.anatomy.embeddings import EMBEDDING
from lightning_pelt.exchange.peft.names import in_saved, layer_of, targets

ALL_LINEAR = "all-linear"


def check_targets(config: Mapping[str, Any], modules: Sequence[str], found: Iterable[str]) -> None:
    """Compare the modules of which a file holds tensors with those of the model and the targets.

    Args:
        config: of the file.
        modules: paths of all modules of the model.
        found: paths of the modules of which the file holds tensors.

    Raises:
        ValueError: the model lacks a module, the file lacks a target, or it has a module that is
            no target.
    """
    given, here = set(found), set(modules)
    if absent := sorted(given - here):
        raise ValueError(
            f"it extends {_few(absent)}, which the model does not have{_similar(absent[0], here)}. "
            "Load the class of model that it was trained on, in a version of transformers with "
            "the same names of modules"
        )
    if config.get("target_modules") in (None, ALL_LINEAR):
        return  # PEFT writes the names; without them the tensors tell
    expected = {path for path in modules if is_target(config, path)}
    if lacking := sorted(expected - given):
        raise ValueError(
            f"it lacks the tensors of {_few(lacking)}, which target_modules="
            f"{config['target_modules']!r} names: the file is incomplete, or it was trained on "
            "another model"
        )
    if more := sorted(given - expected):
        raise ValueError(
            f"it holds tensors of {_few(more)}, which are no targets of its configuration: PEFT "
            "would leave them out. The two files do not belong together"
        )


def is_target(config: Mapping[str, Any], path: str) -> bool:
    """Whether PEFT extends the module at ``path``, see ``check_target_module_exists`` of PEFT."""
    if (excluded := config.get("exclude_modules")) and targets(excluded, path):
        return False
    if in_saved(config.get("modules_to_save") or (), path):
        return False
    names = config["target_modules"]
    if not targets(names, path):
        return False
    layers = config.get("layers_to_transform")
    if isinstance(names, str) or path in names or layers in (None, []):
        return True
    layer = layer_of(path, config.get("layers_pattern"))
    return layer is not None and layer in ([layers] if isinstance(layers, int) else layers)


def sites_of(anatomy: Anatomy, path: str) -> list[Site]:
    """The sites of a layer: one, or those of a fused projection.

    Raises:
        ValueError: the layer is no site, such as a head.
    """
    every = [*anatomy.sites, *anatomy.embeddings]
    layers = [site for site in every if site.is_linear or site.role == EMBEDDING]
    sites = [site for site in layers if site.path == path]
    if not sites:
        raise ValueError(
            f"it extends {path}, where no method can be attached here: it is an embedding of "
            "something else than words, a head, or a layer that did not run in the trial of the "
            "model. Load the adapter with PEFT, call merge_and_unload(), and save the merged model"
        )
    return sites


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more}"


def _similar(path: str, modules: set[str]) -> str:
    """The module whose path is the end of ``path`` or the reverse, or looks like it."""
    ends = [m for m in modules if m.endswith(f".{path}") or path.endswith(f".{m}")]
    near = sorted(ends, key=len)[-1:] or get_close_matches(path, modules, n=1, cutoff=0.6)
    return f"; it has {near[0]}" if near else ""
