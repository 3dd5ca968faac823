"""One ordinary adapter per profile, all trained in one run: a baseline for masks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_pelt.methods import XPEFT
from lightning_pelt.methods._bottleneck import extend
from lightning_pelt.methods._sublayer_hooks import hook_sublayer
from lightning_pelt.methods.base import Part, Place
from lightning_pelt.methods.submodule import refer
from lightning_pelt.methods.xpeft import Bank, RandomBank
from lightning_pelt.methods.xpeft.aggregation import Adapters
from lightning_pelt.methods.xpeft.masks import Masks


class ProfileAdapters(nn.Module):
    """One adapter per profile at one site. Profiles absent from a batch are not updated."""

    masks: Masks

    def __init__(self, masks: Masks, *, width: int, bottleneck: int, std: float) -> None:
        super().__init__()
        refer(self, masks=masks)
        profiles = range(len(masks.logits))
        self.A = nn.ParameterList(std * torch.randn(width, bottleneck) for _ in profiles)
        self.c = nn.ParameterList(torch.zeros(bottleneck) for _ in profiles)
        up = [std * torch.randn(bottleneck, width) for _ in profiles]
        self.B = nn.ParameterList(torch.cat([one, torch.zeros(1, width)]) for one in up)

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (B, T, d), h (B, T, d) -> (B, T, d)."""
        selected = self.masks.of_forward()
        lists = (self.A, self.c, self.B)
        A, c, B = (torch.stack([one[n] for n in selected.numbers]) for one in lists)
        adapters = Adapters(A, c, B, None, selected.inverse)
        return extend(output, h, adapters, activation="relu", gate=None)


@dataclass(frozen=True)
class AdapterPerProfile(XPEFT):
    """One ordinary adapter per profile, instead of masks over a bank."""

    bank: Bank = field(default_factory=lambda: RandomBank(size=1))  # not used
    k: int = 1
    norm: None = None
    init_std: float = 0.02

    def build(self, place: Place) -> list[Part]:
        masks = place.shared[self.name]
        assert isinstance(masks, Masks)
        masks.logits.requires_grad_(False)
        parts = []
        for site in place.sites:
            net = ProfileAdapters(
                masks, width=site.d_out, bottleneck=self.width(site), std=self.init_std
            )
            hooked = hook_sublayer(net, site, self.placement)
            parts.append(Part(hooked.host, f"{self.name}_{site.role}", hooked))
        return parts
