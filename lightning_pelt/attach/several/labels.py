"""A head for other labels than the model's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

Labels = int | Sequence[str] | None


def replace_head(model: PreTrainedModel, labels: Labels, *, seed: int) -> None:
    """Replace the layers of the head whose size depends on the number of labels by new ones.

    The layers are those that differ in a model of the same class and configuration with these
    labels, which is made without memory. The configuration is replaced by a copy.

    Args:
        model: is changed in place.
        labels: their number or their names.
        seed: of the new weights.

    Raises:
        ValueError: fewer than one label, or no layer of the model depends on their number.
    """
    config = _config(model, labels)
    with torch.device("meta"):
        fresh = type(model)(config)
    sized = [path for path, layer in model.named_modules() if _differ(layer, fresh, path)]
    if not sized and config.num_labels != model.config.num_labels:
        raise ValueError(
            f"{type(model).__name__} has no head whose size depends on its labels, and "
            f"labels={labels!r} asks for {config.num_labels} of them: leave labels out"
        )
    old = model.config.num_labels
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for path in sized:
            _replace(model, path, fresh.get_submodule(path))
    for module in model.modules():
        if module.__dict__.get("num_labels") == old:
            module.__dict__["num_labels"] = config.num_labels
    model.__dict__["config"] = config


def _config(model: PreTrainedModel, labels: Labels) -> Any:
    names = [f"LABEL_{i}" for i in range(labels)] if isinstance(labels, int) else list(labels or ())
    if not names:
        raise ValueError(f"labels is {labels!r}, expected a number of at least 1, or their names")
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    return config


def _differ(layer: nn.Module, fresh: nn.Module, path: str) -> bool:
    """Whether a layer's own parameters have other shapes in the fresh model."""
    own = {name: p.shape for name, p in layer._parameters.items() if p is not None}
    other = fresh.get_submodule(path)._parameters if own else {}
    pairs = [(shape, other.get(name)) for name, shape in own.items()]
    return any(there is not None and there.shape != shape for shape, there in pairs)


def _replace(model: PreTrainedModel, path: str, fresh: nn.Module) -> None:
    old = model.get_submodule(path)
    parameter = next(iter(old.parameters()))
    new = fresh.to_empty(device="cpu")
    model._init_weights(new)
    new.to(device=parameter.device, dtype=parameter.dtype).train(old.training)
    parent, _, name = path.rpartition(".")
    model.get_submodule(parent)._modules[name] = new
