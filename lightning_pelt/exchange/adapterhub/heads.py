"""Heads in folders of AdapterHub, where the model has the same head."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from lightning_pelt.exchange.adapterhub.family import Family
from lightning_pelt.exchange.adapterhub.pieces import Assignment
from lightning_pelt.utils.adapterhub_format import (
    HUB_HEAD_CONFIG,
    HUB_HEAD_WEIGHTS,
    read_hub_config,
    read_hub_tensors,
)

KEY = re.compile(r"(?:^|\.)heads\.[^.]+\.(\d+)\.(\w+)$")  # of a flex head: layer and part
FLEX = {"layers": 1, "activation_function": None, "use_pooler": False, "bias": True}


def read_head(path: Path, model: PreTrainedModel, family: Family) -> list[Assignment]:
    """The assignments of the head in a folder; none if it has no head, or the model another one.

    Raises:
        ValueError: the model has the same head with other tensors, or the files are damaged.
    """
    if not (path / HUB_HEAD_CONFIG).is_file():
        return []
    whole = read_hub_config(path / HUB_HEAD_CONFIG)
    named = _names(whole, model, family, read_hub_tensors(path, HUB_HEAD_WEIGHTS))
    if named is None:
        warnings.warn(
            f"{path} has a head ({_describe(whole)}), and {type(model).__name__} has another one "
            "or none: the head is not loaded, and that of the model stays as it is",
            stacklevel=3,
        )
        return []
    own = dict(model.named_parameters())
    head = {name for name in own if name.partition(".")[0] in {n.partition(".")[0] for n in named}}
    if head != named.keys():
        wrong = sorted(head ^ named.keys())
        raise ValueError(
            f"{path} has a head with other tensors than that of {type(model).__name__}: "
            f"{', '.join(wrong)}"
        )
    _compare_labels(path, whole, model)
    return [Assignment(own[name], tensor, name) for name, tensor in named.items()]


def _names(
    whole: Mapping[str, Any], model: PreTrainedModel, family: Family, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """The tensors by their names in the model; None if its head is another one."""
    config = whole["config"]
    if config is None:  # that of a class of transformers
        same = whole.get("model_class") == type(model).__name__
        return dict(tensors) if same else None
    task = type(model).__name__.partition("For")[2]
    if task not in family.heads:
        return None
    wanted, layers = family.heads[task]
    found = {**FLEX, **config}
    if any(found.get(name) != value for name, value in {**FLEX, **wanted}.items()):
        return None
    named = {}
    for key, tensor in tensors.items():
        match = KEY.search(key)
        layer = layers[int(match[1])] if match and int(match[1]) < len(layers) else None
        if match is None or layer is None:
            return None
        named[f"{layer}.{match[2]}"] = tensor
    return named


def _describe(whole: Mapping[str, Any]) -> str:
    config = whole["config"]
    if config is None:
        return str(whole.get("model_class"))
    told = ("head_type", "layers", "activation_function", "use_pooler", "num_labels")
    return ", ".join(f"{name}={config[name]!r}" for name in told if name in config)


def _compare_labels(path: Path, whole: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Warn if the model gives its labels other names, and name neither ``LABEL_0``."""
    there = (whole["config"] or whole).get("label2id") or {}
    here = getattr(model.config, "label2id", None) or {}
    unnamed = [all(str(name).startswith("LABEL_") for name in each) for each in (there, here)]
    if not any(unnamed) and there != here:
        warnings.warn(
            f"{path} has the labels {there}, and the model {here}: its outputs are in the order of "
            "the folder",
            stacklevel=4,
        )
