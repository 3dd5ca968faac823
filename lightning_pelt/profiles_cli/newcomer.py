"""One profile more on a trained model: what is shared stays, only its masks are trained."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lightning_pelt.data.profiles import PROFILE
from lightning_pelt.methods import XPEFT
from lightning_pelt.module import PELTModule
from lightning_pelt.plan import Plan
from lightning_pelt.profiles.keeping import heads_of
from lightning_pelt.profiles.masks import masks_of


class Newcomer(PELTModule):
    """A model with a single profile, of which nothing but that profile's own is trained."""

    def configure_model(self) -> None:
        super().configure_model()
        own = {parameter for values in _own(self) for parameter in values}
        for parameter in self.parameters():
            parameter.requires_grad_(parameter in own)

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """All rows are of the one profile, whatever its number is among those of the data."""
        return {name: value for name, value in batch.items() if name != PROFILE}


def newcomer(trained: PELTModule, recipe: PELTModule) -> Newcomer:
    """A profile more on ``trained``, which begins at the mean of its profiles.

    Args:
        trained: gives backbone, plan, labels and all that profiles share; its first profile is
            overwritten.
        recipe: gives rates, optimizer and the rest of how to train.
    """
    module = Newcomer(
        trained.backbone,
        _alone(trained.plan),
        trained.task,
        labels=trained.labels,
        lr=recipe.lr,
        lrs=recipe.lrs,
        weight_decay=recipe.weight_decay,
        warmup=recipe.warmup,
        optimizer=recipe.optimizer,
        base_dropout=recipe.base_dropout,
        checkpoint_activations=recipe.checkpoint_activations,
        dtype=trained.dtype_of_base,
        seed=recipe.seed,
    )
    module.configure_model()
    assert module.model is not None and trained.model is not None
    with torch.no_grad():
        for values in _own(trained):
            values[0].copy_(torch.stack([*values]).mean(0))
    state = trained.model.state_dict()
    module.model.load_state_dict({name: state[name] for name in module.model.state_dict()})
    return module


def _own(module: PELTModule) -> list[nn.ParameterList]:
    """What each profile has of its own: masks, and a norm and a head where they are not shared."""
    masks, heads = masks_of(module), heads_of(module)
    norms = [masks.norms] if masks.own_norms else []
    return [masks.logits, *norms, *([] if heads is None else [heads.own])]


def _alone(plan: Plan) -> Plan:
    """``plan`` for one profile."""
    single = copy.copy(plan)
    single.groups = tuple(
        replace(
            group,
            methods=tuple(
                replace(method, profiles=1) if isinstance(method, XPEFT) else method
                for method in group.methods
            ),
        )
        for group in plan.groups
    )
    return single
