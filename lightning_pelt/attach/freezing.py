"""Freezes the base, and records what is needed to restore it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_pelt.anatomy import Anatomy, base_of
from lightning_pelt.plans.plan import Plan
from lightning_pelt.utils.errors import unknown


@dataclass
class Frozen:
    """A frozen model.

    Attributes:
        head, norms: names of the parameters of the head, and of the norms that the plan trains.
        head_size, backbone_size, norm_size: numbers of parameters.
        trained_before: whether each parameter required a gradient before, by name.
        norms_before: the trained norms as they were, by name.
    """

    head: frozenset[str]
    norms: frozenset[str] = frozenset()
    head_size: int = 0
    backbone_size: int = 0
    norm_size: int = 0
    trained_before: dict[str, bool] = field(default_factory=dict)
    norms_before: dict[str, Tensor] = field(default_factory=dict)

    def restore(self, model: PreTrainedModel, *, norms: bool = True) -> None:
        """Unfreeze what was frozen, and restore the norms, or keep what they have learned."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.trained_before.get(name, True))
            if norms and name in self.norms_before:
                with torch.no_grad():
                    parameter.copy_(self.norms_before[name])


def freeze(
    model: PreTrainedModel, plan: Plan, anatomy: Anatomy, head: Sequence[str] | None
) -> Frozen:
    """Freeze the base of ``model``. A new head stays trainable.

    Args:
        model: is changed in place.
        plan: whether it trains the base, or the norms of it.
        anatomy: of the model.
        head: paths of modules that are trained as the head; None for the default.

    Raises:
        ValueError: a path of ``head`` does not exist.
    """
    frozen = Frozen(head_names(model, head))
    frozen.trained_before = {n: p.requires_grad for n, p in model.named_parameters()}
    for name, parameter in model.named_parameters():
        in_head = name in frozen.head
        parameter.requires_grad_(plan.train_base or in_head)
        frozen.head_size += parameter.numel() if in_head else 0
        frozen.backbone_size += 0 if in_head else parameter.numel()
    if plan.norms and not plan.train_base:
        _train_norms(model, anatomy, frozen)
    return frozen


def head_names(model: PreTrainedModel, paths: Sequence[str] | None) -> frozenset[str]:
    """Names of the head's parameters: below ``paths``, or outside the base by default.

    Raises:
        ValueError: a path does not exist.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    if paths is not None:
        modules = dict(model.named_modules())
        for path in paths:
            if path not in modules:
                raise unknown("head", path, [name for name, _ in model.named_children()])
        chosen = {named[name] for name in named if any(inside(name, path) for path in paths)}
        return frozenset(name for name, parameter in named.items() if parameter in chosen)
    if model.get_output_embeddings() is not None:
        return frozenset()
    base = set(base_of(model).parameters())
    return frozenset(name for name, parameter in named.items() if parameter not in base)


def inside(name: str, other: str) -> bool:
    """Whether the dotted ``name`` lies below ``other``."""
    return other == "" or name.startswith(f"{other}.")


def _train_norms(model: PreTrainedModel, anatomy: Anatomy, frozen: Frozen) -> None:
    """Unfreeze the norms of the base, and record their values."""
    paths = {site.path for site in anatomy.sites if site.role == "norm"}
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0] in paths and name not in frozen.head:
            parameter.requires_grad_(True)
            frozen.norms_before[name] = parameter.detach().clone()
    frozen.norms = frozenset(frozen.norms_before)
    frozen.norm_size = sum(norm.numel() for norm in frozen.norms_before.values())
