"""X-PEFT: profiles are masks over a frozen bank of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_pelt import bottleneck, placement
from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.errors import unknown
from lightning_pelt.gate import Gate
from lightning_pelt.method import Method, Part, Place
from lightning_pelt.placement import Placement
from lightning_pelt.profiles.aggregate import Aggregated
from lightning_pelt.profiles.bank import Bank, BankTensors, RandomBank
from lightning_pelt.profiles.heads import Heads
from lightning_pelt.profiles.masks import Kind, Masks

Sharing = Literal["shared", "profile"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class XPEFT(Method):
    r"""X-PEFT (arXiv 2401.16137): a profile is two masks per block over a frozen bank of adapters.

    :math:`\hat A_l = \sum_i m^A_{l,i} A_{l,i}` and :math:`\hat B_l` alike make one adapter, at the
    cost of one whatever the bank's size: :math:`f + \hat B^\top \phi(LN(\hat A^\top h))`. Hard
    masks choose k of N adapters and take 2 N L bits. Many profiles train in one run: the model
    takes ``profile=(B,)``, the number of each row's profile, beside its other inputs.

    Args:
        bank: a :class:`RandomBank`, which a seed stands for, or a :class:`TrainedBank`.
        profiles: their number.
        mask: ``hard`` (k-hot) or ``soft`` (softmax).
        k: adapters that a hard mask chooses.
        scale: of the masks; by default such that both projections start with the spread of a single
            adapter's: ``1 / sqrt(k)`` for hard masks, ``sqrt(N)`` for soft ones.
        temperature: of the softmax.
        noise: how much Gumbel noise the logits get in training, 0 is none.
        init_std: of the logits.
        head: ``shared`` by all profiles, or with one of each ``profile``'s own on top.
        norm: a norm in the bottleneck, ``shared`` by all profiles or each ``profile``'s own; None
            is none.
        bottleneck: of the bank's adapters; by default ``reduction_factor`` times smaller than the
            model's width.
        sites: ``ffn``, ``attention``, ``cross_attention``.
        placement: see :class:`lightning_pelt.Adapter`.
        activation: of the adapters.
        precision: of the bank in memory.
        gate: None is ungated. It reads ``h``.
        name: of its parameter group, gates and log lines.

    Raises:
        ValueError: ``k`` or ``profiles`` is below 1, or ``k`` above the size of the bank.
    """

    bank: Bank = field(default_factory=RandomBank)
    profiles: int = 1
    mask: Kind = "hard"
    k: int = 50
    scale: float | None = None
    temperature: float = 1.0
    noise: float = 0.0
    init_std: float = 0.01
    norm: Sharing | None = "shared"
    head: Sharing = "shared"
    bottleneck: int | None = None
    reduction_factor: int = 16
    sites: Sequence[str] = ("ffn",)
    placement: Placement = "auto"
    activation: str = "relu"
    precision: Precision = "float32"
    gate: Gate | None = None
    name: str = "xpeft"

    def __post_init__(self) -> None:
        placement.check(self.placement)
        bottleneck.check(self)
        options: tuple[tuple[str, Any], ...] = (
            ("mask", Kind),
            ("precision", Precision),
            ("norm", Sharing),
            ("head", Sharing),
        )
        for option, kinds in options:
            value = getattr(self, option)
            if value not in get_args(kinds) and not (option == "norm" and value is None):
                raise unknown(f"{option} of XPEFT", value, get_args(kinds))
        if self.mask == "hard" and not 1 <= self.k <= self.bank.size:
            raise ValueError(
                f"XPEFT has k={self.k}: a hard mask chooses between 1 and all {self.bank.size} "
                "adapters of the bank"
            )
        if self.profiles < 1 or self.temperature <= 0 or self.noise < 0:
            raise ValueError(
                f"XPEFT has profiles={self.profiles}, temperature={self.temperature}, "
                f"noise={self.noise}: at least one profile, a temperature above 0 and no negative "
                "noise are needed"
            )

    def where(self, anatomy: Anatomy) -> list[Site]:
        sites = placement.sublayers(anatomy, self.sites, self.placement)
        widths = {(placement.reads(site, self.placement), site.d_out) for site in sites}
        if len({width for pair in widths for width in pair}) > 1:
            raise ValueError(
                f"{anatomy.model_type} has sublayers of several widths, {sorted(widths)}, and the "
                "adapters of a bank have one: choose sites of one width in XPEFT(sites=...)"
            )
        return sites

    def gate_width(self, site: Site) -> int:
        return placement.reads(site, self.placement)

    def width(self, site: Site) -> int:
        """Width of the bottleneck at ``site``."""
        return self.bottleneck or max(1, site.d_out // self.reduction_factor)

    def build_shared(self, anatomy: Anatomy, sites: Sequence[Site]) -> list[Part]:
        bank = self.bank.load(
            blocks=len(sites),
            width=sites[0].d_out,
            bottleneck=self.width(sites[0]),
            dtype=getattr(torch, self.precision),
        )
        hard = self.mask == "hard"
        default = self.k**-0.5 if hard else self.bank.size**0.5
        masks = Masks(
            profiles=self.profiles,
            sites=len(sites),
            size=self.bank.size,
            k=self.k if hard else None,
            scale=default if self.scale is None else self.scale,
            temperature=self.temperature,
            noise=self.noise,
            init_std=self.init_std,
            bottleneck=self.width(sites[0]),
            norm=self.norm,
        )
        stacks = dict.fromkeys(site.stack for site in sites)
        masks.place(sites, [anatomy.stack(name).path for name in stacks], bank)
        parts = [Part("", self.name, masks)]
        if self.head == "profile":
            parts.append(Part("", f"{self.name}_heads", Heads(masks)))
        return parts

    def build(self, place: Place) -> list[Part]:
        masks = place.shared[self.name]
        assert isinstance(masks, Masks)
        parts = []
        for site, gate in zip(place.sites, place.gates, strict=True):
            index = masks.sites.index(site)
            bank = masks.bank
            net = Aggregated(
                masks,
                index,
                A=bank.A[index],
                B=_with_bias(bank, index),
                c=None if bank.a_bias is None else bank.a_bias[index],
                bottleneck=self.width(site),
                activation=self.activation,
                gate=gate,
            )
            placed = placement.place(net, site, self.placement)
            parts.append(Part(placed.host, f"{self.name}_{site.role}", placed))
        return parts


def _with_bias(bank: BankTensors, index: int) -> Tensor:
    """Up-projections of one site with their biases as last rows, (N, (b + 1) d)."""
    B = bank.B[index]
    bias = B.new_zeros(len(B), bank.width) if bank.b_bias is None else bank.b_bias[index]
    return torch.cat([B, bias], 1)
