"""One head per profile, added to the head that all profiles share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import base_of
from lightning_pelt.methods.submodule import Removable, Submodule, refer
from lightning_pelt.methods.xpeft._ranks import stack
from lightning_pelt.methods.xpeft.masks import Masks


class ProfileHeads(Submodule):
    r""":math:`y = W x + b + W_p x + b_p` at the model's last linear layer.

    The head of each profile, :math:`[W_p, b_p]`, starts at zero. It is a separate parameter
    (C, d + 1) with its bias as the last column, so that profiles absent from a batch are not
    updated.
    """

    sized_by_labels = True
    masks: Masks

    def __init__(self, masks: Masks) -> None:
        super().__init__()
        refer(self, masks=masks)
        self.own = nn.ParameterList()

    def install(self, model: nn.Module) -> list[Removable]:
        assert isinstance(model, PreTrainedModel)
        last = _last_linear(model)
        # The model's head, and with it shape and device, is known only now.
        shape = (last.out_features, last.in_features + 1)
        device = "cpu" if last.weight.is_meta else last.weight.device
        for _ in self.masks.logits:
            self.own.append(nn.Parameter(torch.zeros(shape, device=device)))
        return [last.register_forward_hook(self._add)]

    def _add(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self(output, args[0])

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """output (B, ..., C), x (B, ..., d) -> (B, ..., C)."""
        selected = self.masks.of_forward()
        heads = selected.heads
        if heads is None:
            heads = stack(self.own, selected.numbers, selected.elsewhere)  # (U, C, d + 1)
        times = len(x) // len(selected.inverse)
        rows = heads.to(x.dtype)[selected.inverse.repeat_interleave(times)]
        weight, bias = rows[..., :-1], rows[..., -1:]
        flat = x.reshape(len(rows), -1, x.shape[-1])
        added = torch.baddbmm(bias, weight, flat.mT).mT  # (B, ..., C)
        return output + added.reshape(output.shape).to(output.dtype)


def _last_linear(model: PreTrainedModel) -> nn.Linear:
    """The linear layer that computes the scores of the labels.

    Raises:
        ValueError: the model has no such layer outside its base.
    """
    inside = set(base_of(model).modules())
    outside: list[Any] = [m for m in model.modules() if m not in inside]
    linear = [m for m in outside if isinstance(m, nn.Linear)]
    if not linear or model.get_output_embeddings() is not None:
        raise ValueError(
            f"{type(model).__name__} has no classification or regression head to which the heads "
            "of profiles could be added: use a model with such a head, or XPEFT(head='shared')"
        )
    return linear[-1]
