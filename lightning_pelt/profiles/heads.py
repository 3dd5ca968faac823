"""A head of its own for every profile, on top of the one that all share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import base_of
from lightning_pelt.profiles.masks import Masks
from lightning_pelt.submodule import Removable, Submodule


class Heads(Submodule):
    r""":math:`y = W x + b + W_p x + b_p` at the model's last linear layer, with zeros at first.

    The shared head learns what profiles have in common, a profile's own the rest. Each is a
    parameter (C, d + 1) of its own, its bias as last column, so absent profiles do not move.
    """

    def __init__(self, masks: Masks) -> None:
        super().__init__()
        self.__dict__["masks"] = masks  # a reference, not a child
        self.masks: Masks
        self.own = nn.ParameterList()

    def install(self, model: nn.Module) -> list[Removable]:
        assert isinstance(model, PreTrainedModel)
        last = _last_linear(model)
        # Only now is the head known. It is on the model's device, and so are these.
        shape = (last.out_features, last.in_features + 1)
        for _ in self.masks.logits:
            self.own.append(nn.Parameter(torch.zeros(shape, device=last.weight.device)))
        return [last.register_forward_hook(self._add)]

    def _add(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self(output, args[0])

    def forward(self, output: Tensor, x: Tensor) -> Tensor:
        """output (B, ..., C), x (B, ..., d) -> (B, ..., C)."""
        choice = self.masks.choice
        assert choice is not None
        heads = choice.heads
        if heads is None:
            heads = torch.stack([self.own[number] for number in choice.numbers])  # (U, C, d + 1)
        times = len(x) // len(choice.inverse)
        rows = heads.to(x.dtype)[choice.inverse.repeat_interleave(times)]
        weight, bias = rows[..., :-1], rows[..., -1:]
        flat = x.reshape(len(rows), -1, x.shape[-1])
        added = torch.baddbmm(bias, weight, flat.mT).mT  # (B, ..., C)
        return output + added.reshape(output.shape).to(output.dtype)


def _last_linear(model: PreTrainedModel) -> nn.Linear:
    """The linear layer that gives the labels' scores.

    Raises:
        ValueError: the model has none outside its base.
    """
    inside = set(base_of(model).modules())
    outside: list[Any] = [m for m in model.modules() if m not in inside]
    linear = [m for m in outside if isinstance(m, nn.Linear)]
    if not linear or model.get_output_embeddings() is not None:
        raise ValueError(
            f"{type(model).__name__} has no head that profiles could have one of their own of: "
            "take a model with a classification or regression head, or XPEFT(head='shared')"
        )
    return linear[-1]
