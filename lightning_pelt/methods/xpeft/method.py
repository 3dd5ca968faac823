"""X-PEFT: profiles are masks over a frozen bank of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods._bottleneck import BottleneckMethod
from lightning_pelt.methods._sublayer_hooks import Placement, hook_sublayer
from lightning_pelt.methods.base import Part, Place
from lightning_pelt.methods.gate import Gate
from lightning_pelt.methods.submodule import refer
from lightning_pelt.methods.xpeft.aggregation import AggregatedAdapter
from lightning_pelt.methods.xpeft.bank import Bank, BankTensors, RandomBank
from lightning_pelt.methods.xpeft.bank_placement import follow, refuse_other_placement
from lightning_pelt.methods.xpeft.masks import MaskKind, Masks
from lightning_pelt.methods.xpeft.profile_heads import ProfileHeads
from lightning_pelt.utils.errors import unknown

PROFILE = "profile"  # the model input with the number of each row's profile
Sharing = Literal["shared", "profile"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class XPEFT(BottleneckMethod):
    r"""X-PEFT (arXiv 2401.16137): a profile is two masks per block over a frozen bank of adapters.

    The masks of a profile combine the bank into one adapter,
    :math:`f + \hat B^\top \phi(LN(\hat A^\top h))` with
    :math:`\hat A_l = \sum_i m^A_{l,i} A_{l,i}` and :math:`\hat B_l = \sum_i m^B_{l,i} B_{l,i}`. It
    costs as much as one adapter, regardless of the size of the bank. Hard masks select k of N
    adapters and take 2 N L bits. One run trains many profiles: the model has an additional input
    ``profile=(B,)``, the number of each row's profile.

    Args:
        bank: a :class:`RandomBank` or a :class:`TrainedBank`.
        profiles: number of profiles.
        mask: ``hard`` (k-hot) or ``soft`` (softmax).
        k: number of adapters that a hard mask selects.
        scale: factor of the masks. By default, both projections start with the standard deviation
            of a single adapter's: ``1 / sqrt(k)`` for hard masks, ``sqrt(N)`` for soft masks.
        temperature: temperature of the softmax.
        noise: scale of the Gumbel noise on the logits in training; 0 for no noise.
        init_std: standard deviation of the initial logits.
        head: ``shared`` for one head for all profiles; ``profile`` to add one per profile.
        norm: ``shared`` for one norm in the bottleneck for all profiles; ``profile`` for one per
            profile; None for no norm.
        bottleneck: width of the bank's adapters; by default the width of the model divided by
            ``reduction_factor``.
        reduction_factor: see ``bottleneck``.
        sites: ``ffn``, ``attention``, ``cross_attention``.
        placement: see :class:`lightning_pelt.Adapter`. With a trained bank, ``auto`` is where its
            adapters were trained.
        activation: activation of the adapters.
        precision: dtype of the bank in memory.
        gate: None for no gate. The gate reads ``h``.
        name: name of the parameter group, the gates and the log entries.

    Raises:
        ValueError: ``k`` or ``profiles`` is below 1, ``k`` is larger than the bank, another
            option is out of range, or the adapters of the bank were trained at another placement.

    Example:
        >>> from lightning_pelt import XPEFT, Plan, RandomBank, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> method = XPEFT(bank=RandomBank(seed=0, size=8), k=2, bottleneck=4, profiles=3)
        >>> attachment = attach(model, Plan.uniform(method))
        >>> tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
        >>> model(input_ids=tokens, profile=torch.tensor([2, 0])).logits.shape
        torch.Size([2, 3])
    """

    bank: Bank = field(default_factory=RandomBank)
    profiles: int = 1
    mask: MaskKind = "hard"
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

    weight_decay = False  # decay pulls logits to 0, where the selection is arbitrary
    batch_inputs = (PROFILE,)

    def __post_init__(self) -> None:
        super().__post_init__()
        options: tuple[tuple[str, Any], ...] = (
            ("mask", MaskKind),
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
                f"XPEFT has k={self.k}, expected 1 to {self.bank.size}, the number of adapters of "
                "the bank"
            )
        if self.profiles < 1 or self.temperature <= 0 or self.noise < 0:
            raise ValueError(
                f"XPEFT has profiles={self.profiles}, temperature={self.temperature}, "
                f"noise={self.noise}, expected profiles >= 1, temperature > 0 and noise >= 0"
            )

    def where(self, anatomy: Anatomy) -> list[Site]:
        sites = super().where(anatomy)
        widths = {(self.reads(site), site.d_out) for site in sites}
        if len({width for pair in widths for width in pair}) > 1:
            raise ValueError(
                f"{anatomy.model_type} has sublayers of several widths, {sorted(widths)}, and all "
                "adapters of a bank have the same: choose sites of one width in XPEFT(sites=...)"
            )
        return sites

    def for_one_profile(self) -> XPEFT:
        return replace(self, profiles=1)

    @property
    def trained_by_rows(self) -> bool:
        return self.profiles > 1

    def build_shared(self, anatomy: Anatomy, sites: Sequence[Site]) -> list[Part]:
        bank = self.bank.load(
            blocks=len(sites),
            width=sites[0].d_out,
            bottleneck=self.width(sites[0]),
            dtype=getattr(torch, self.precision),
        )
        refuse_other_placement(anatomy, sites, self.placement, bank)
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
        masks.bind(sites, [anatomy.stack(name).path for name in stacks], bank)
        parts = [Part("", self.name, masks)]
        if self.head == "profile":
            heads = ProfileHeads(masks)
            refer(masks, heads=heads)
            parts.append(Part("", f"{self.name}_heads", heads))
        return parts

    def build(self, place: Place) -> list[Part]:
        masks = place.shared[self.name]
        assert isinstance(masks, Masks)
        parts = []
        for site, gate in zip(place.sites, place.gates, strict=True):
            index = masks.sites.index(site)
            bank = masks.bank
            net = AggregatedAdapter(
                masks,
                index,
                A=bank.A[index],
                B=_with_bias(bank, index),
                c=None if bank.a_bias is None else bank.a_bias[index],
                bottleneck=self.width(site),
                activation=self.activation,
                gate=gate,
            )
            hooked = hook_sublayer(net, site, follow(self.placement, bank))
            parts.append(Part(hooked.host, f"{self.name}_{site.role}", hooked))
        return parts


def _with_bias(bank: BankTensors, index: int) -> Tensor:
    """Up-projections of one site with their biases as the last rows, (N, (b + 1) d)."""
    B = bank.B[index]
    bias = B.new_zeros(len(B), bank.width) if bank.b_bias is None else bank.b_bias[index]
    return torch.cat([B, bias], 1)
