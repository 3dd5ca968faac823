"""One ordinary adapter for each profile, all in one run: what masks are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_pelt import placement
from lightning_pelt.bottleneck import extend
from lightning_pelt.method import Part, Place
from lightning_pelt.methods import XPEFT
from lightning_pelt.profiles.aggregate import Adapters
from lightning_pelt.profiles.bank import Bank, RandomBank
from lightning_pelt.profiles.masks import Masks


class OwnAdapters(nn.Module):
    """One adapter per author at one site; an author without rows in a batch does not move."""

    def __init__(self, masks: Masks, *, width: int, bottleneck: int, std: float) -> None:
        super().__init__()
        self.__dict__["masks"] = masks  # a reference, not a child: it knows whose the rows are
        self.masks: Masks
        people = range(len(masks.logits))
        self.A = nn.ParameterList(std * torch.randn(width, bottleneck) for _ in people)
        self.c = nn.ParameterList(torch.zeros(bottleneck) for _ in people)
        up = [std * torch.randn(bottleneck, width) for _ in people]
        self.B = nn.ParameterList(torch.cat([one, torch.zeros(1, width)]) for one in up)

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (B, T, d), h (B, T, d) -> (B, T, d)."""
        choice = self.masks.choice
        assert choice is not None
        A, c, B = (torch.stack([s[n] for n in choice.numbers]) for s in (self.A, self.c, self.B))
        return extend(
            output, h, Adapters(A, c, B, None, choice.inverse), activation="relu", gate=None
        )


@dataclass(frozen=True)
class AdapterEach(XPEFT):
    """An ordinary adapter for each profile in one run, in the place of masks over a bank."""

    bank: Bank = field(default_factory=lambda: RandomBank(size=1))  # of which nothing is used
    k: int = 1
    norm: None = None
    init_std: float = 0.02

    def build(self, place: Place) -> list[Part]:
        masks = place.shared[self.name]
        assert isinstance(masks, Masks)
        masks.logits.requires_grad_(False)
        parts = []
        for site in place.sites:
            net = OwnAdapters(
                masks, width=site.d_out, bottleneck=self.width(site), std=self.init_std
            )
            placed = placement.place(net, site, self.placement)
            parts.append(Part(placed.host, f"{self.name}_{site.role}", placed))
        return parts
