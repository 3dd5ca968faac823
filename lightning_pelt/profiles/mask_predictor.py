"""``MaskPredictor``: the masks of a new user from the model's errors on the user's texts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MaskPredictor(nn.Module):
    r"""Mask logits of a new user, without training, from the summary of the user's labelled texts.

    The logits are those of the mean of existing profiles, plus a difference of low rank:
    :math:`\theta = \bar\theta + V \tanh(W \operatorname{vec}(G P))`, where G (C, d + 1) is the
    summary of :class:`~lightning_pelt.profiles.evidence.Evidence`. It is zero where the model makes
    no errors, and so is the difference then.

    Args:
        start: mean logits of the existing profiles (L, 2, N).
        labels: number of classes, C.
        width: width of the model, d.
        rank: columns of P.
        hidden: columns of V.
        dropout: share of the columns of V that are left out in training.

    Example:
        >>> predictor = MaskPredictor(torch.zeros(2, 2, 8), labels=3, width=16)
        >>> predictor(torch.ones(5, 3, 17)).shape
        torch.Size([5, 2, 2, 8])
    """

    start: Tensor
    unit: Tensor

    def __init__(
        self,
        start: Tensor,
        *,
        labels: int,
        width: int,
        rank: int = 16,
        hidden: int = 32,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.register_buffer("start", start.detach().clone())
        self.register_buffer("unit", torch.ones(()))
        self.project = nn.Linear(width + 1, rank, bias=False)
        self.mix = nn.Linear(labels * rank, hidden, bias=False)
        self.drop = nn.Dropout(dropout)
        self.difference = nn.Linear(hidden, start.numel(), bias=False)
        nn.init.normal_(self.project.weight, std=(width + 1) ** -0.5)
        nn.init.normal_(self.mix.weight, std=(labels * rank) ** -0.5)
        nn.init.normal_(self.difference.weight, std=1e-3)

    @torch.no_grad()
    def scale_to(self, summaries: Tensor) -> None:
        """Set the unit of summaries so that those of existing users (U, C, d + 1) do not saturate.

        Their values before the tanh get a root mean square of 1.
        """
        inner = self.mix(self.project(summaries).flatten(1))
        self.unit.copy_(inner.square().mean().sqrt().clamp(min=1e-12))

    def forward(self, summaries: Tensor) -> Tensor:
        """(U, C, d + 1) -> (U, L, 2, N)."""
        inner = self.project(summaries / self.unit).flatten(1)
        difference = self.difference(self.drop(torch.tanh(self.mix(inner))))
        return self.start + difference.view(-1, *self.start.shape)
