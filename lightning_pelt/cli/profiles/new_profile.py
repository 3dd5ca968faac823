"""A new profile on a trained model: only its masks, norm and head are trained."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_pelt.data.profile_data import PROFILE
from lightning_pelt.methods.xpeft.masks import masks_of
from lightning_pelt.plans import Plan
from lightning_pelt.profiles.model_profiles import heads_of
from lightning_pelt.training.learning_check import LearningCheck
from lightning_pelt.training.module import PELTModule


class NewProfileModule(PELTModule):
    """A model with one profile, which trains nothing but the parameters of that profile."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.learning = LearningCheck(only=lambda: chain(*_own(self)))

    def configure_model(self) -> None:
        super().configure_model()
        own = {*chain(*_own(self))}
        for parameter in self.parameters():
            parameter.requires_grad_(parameter in own)

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Leave out the profile's index in the data: the model has one profile for all rows."""
        return {name: value for name, value in batch.items() if name != PROFILE}


def new_profile_module(
    trained: PELTModule, recipe: PELTModule, start: Tensor | None = None
) -> NewProfileModule:
    """A module for one more profile, which starts at the mean of the profiles of ``trained``.

    Args:
        trained: the model whose backbone, plan, labels and shared parameters are used. Its first
            profile is overwritten.
        recipe: the module whose learning rates, optimizer and other training options are used.
        start: logits of the masks (L, 2, N), instead of the mean.
    """
    module = NewProfileModule(
        trained.backbone,
        _for_one_profile(trained.plan),
        trained.task,
        labels=trained.labels,
        lr=recipe.lr,
        lrs=recipe.lrs,
        weight_decay=recipe.weight_decay,
        warmup=recipe.warmup,
        optimizer=recipe.optimizer,
        base_dropout=recipe.base_dropout,
        checkpoint_activations=recipe.checkpoint_activations,
        head=trained.head,
        dtype=trained.dtype_of_base,
        seed=recipe.seed,
    )
    module.configure_model()
    assert module.model is not None and trained.model is not None
    with torch.no_grad():
        for values in _own(trained):
            values[0].copy_(torch.stack([*values]).mean(0))
        if start is not None:
            masks_of(trained).logits[0].copy_(start)
    state = trained.model.state_dict()
    module.model.load_state_dict({name: state[name] for name in module.model.state_dict()})
    return module


def _own(module: PELTModule) -> list[nn.ParameterList]:
    """The parameters by profile: masks, and norms and heads that are not shared."""
    masks, heads = masks_of(module), heads_of(module)
    norms = [masks.norms] if masks.own_norms else []
    return [masks.logits, *norms, *([] if heads is None else [heads.own])]


def _for_one_profile(plan: Plan) -> Plan:
    single = copy.copy(plan)
    single.groups = tuple(
        replace(group, methods=tuple(method.for_one_profile() for method in group.methods))
        for group in plan.groups
    )
    return single
