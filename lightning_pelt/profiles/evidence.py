"""What a user's labelled texts say about a model: its errors on them, from one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from lightning_pelt.anatomy import base_of
from lightning_pelt.methods.xpeft.masks import SelectedMasks, masks_of, profiles_of
from lightning_pelt.methods.xpeft.method import PROFILE
from lightning_pelt.profiles.model_profiles import heads_of
from lightning_pelt.tasks.base import model_inputs


class Evidence(NamedTuple):
    """Labelled rows as a model without a profile of their user sees them.

    Attributes:
        hidden: (R, d + 1), the mean of each row's last hidden states, and a one.
        errors: (R, C), the one-hot label of each row minus the predicted probabilities.
    """

    hidden: Tensor
    errors: Tensor

    def summary(self, rows: Tensor | None = None) -> Tensor:
        """The mean over all rows, or over some, of errors times hidden states; (C, d + 1).

        It is minus the gradient of the loss with respect to a linear head on the hidden states, and
        depends neither on the number of rows nor on their order.
        """
        hidden, errors = self if rows is None else (self.hidden[rows], self.errors[rows])
        return errors.T @ hidden / len(hidden)


@torch.no_grad()
def evidence(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Any]], logits: Tensor
) -> Evidence:
    """Run ``model`` once over labelled rows, with the same masks for all of them.

    Args:
        model: a classifier with an X-PEFT plan, in eval mode.
        batches: of a data module, with ``labels`` (B,).
        logits: of the masks (L, 2, N), such as the mean of those of existing profiles.
    """
    hidden, errors = [], []
    last: list[Tensor] = []
    hook = base_of(model).register_forward_hook(lambda *run: last.append(run[2][0]))
    try:
        for batch in batches:
            count = len(batch["labels"])
            inputs = {name: value for name, value in model_inputs(batch).items() if name != PROFILE}
            rows = torch.zeros(count, dtype=torch.long, device=batch["labels"].device)
            with profiles_of(model, selected(model, logits[None], rows)):
                scores = model(**inputs).logits.float()
            mask = batch["attention_mask"][..., None]
            mean = (last.pop().float() * mask).sum(1) / mask.sum(1)
            hidden.append(F.pad(mean, (0, 1), value=1.0))
            errors.append(F.one_hot(batch["labels"], scores.shape[-1]) - scores.softmax(-1))
    finally:
        hook.remove()
    return Evidence(torch.cat(hidden), torch.cat(errors))


def selected(model: nn.Module, logits: Tensor, inverse: Tensor) -> SelectedMasks:
    """The masks of U users who have no profile in ``model``, as functions of their logits.

    Norms and heads that are not shared are the means of those of the existing profiles.

    Args:
        model: a model with an X-PEFT plan.
        logits: (U, L, 2, N).
        inverse: (B,), the index of each row's user.
    """
    masks, heads = masks_of(model), heads_of(model)
    norms = own = None
    if len(masks.norms):
        norms = torch.stack([*masks.norms]).mean(0, keepdim=True)
    if heads is not None:
        own = torch.stack([*heads.own]).mean(0).expand(len(logits), -1, -1)
    return SelectedMasks(masks.from_logits(logits), norms, inverse, heads=own)


def mean_logits(model: nn.Module) -> Tensor:
    """The mean of the mask logits of all profiles of ``model``, (L, 2, N)."""
    return torch.stack([*masks_of(model).logits]).detach().mean(0)
