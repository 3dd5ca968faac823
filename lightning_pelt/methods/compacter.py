"""Compacter: adapters whose projections are sums of Kronecker products."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods._bottleneck import BottleneckMethod
from lightning_pelt.methods._kronecker import Rule
from lightning_pelt.methods._stacked_bottlenecks import Shape, build_bottlenecks, build_stacks
from lightning_pelt.methods._sublayer_hooks import SUBLAYERS, Placement, sublayers
from lightning_pelt.methods.base import Part, Place
from lightning_pelt.methods.gate import Gate
from lightning_pelt.utils.errors import unknown

log = logging.getLogger(__name__)
VARIANTS = {"compacter": ("attention", "ffn"), "compacter++": ("ffn",)}
ALMOST_NOTHING = 1e-3
OWN_RULE_STD = 0.01


@dataclass(frozen=True)
class Compacter(BottleneckMethod):
    r"""Adapters made of Kronecker products (Karimi Mahabadi et al., 2021;
    https://arxiv.org/abs/2106.04647).

    :math:`f + H_{up}^\top \phi(H_{down}^\top h + b_{down}) + b_{up}` with
    :math:`H = \sum_{i=1}^n A_i \otimes (S_i R_i)`: the rule A (n, n, n) is one tensor for the whole
    model; every projection has its S and R of rank ``rank``. H has a rank of at most
    ``n * n * rank``, so that a wider bottleneck adds units but no rank. The adapters start as the
    identity to fp32 precision, since A starts at ``rule_std``.

    As in the paper, the norms of the model are trained too, see ``norms`` of
    :class:`lightning_pelt.Plan`. Compacter++ is ``sites="compacter++"``; PHM adapters are
    ``Compacter(n=12, share_rule=False, factorized=False)``.

    Args:
        n: number of Kronecker terms; divides the widths that the adapters read and write.
        rank: of each S R.
        bottleneck: width of the bottleneck, rounded up to a multiple of n; by default the model's
            width divided by ``reduction_factor``.
        reduction_factor: see ``bottleneck``.
        share_rule: one rule for the whole model (per group of a plan that has the method in
            several), or one for every projection.
        factorized: False for one full matrix instead of each S R, as in PHM adapters.
        learn_rule: False freezes A at its initial values, which then need a larger ``rule_std``.
        rule_std: initial standard deviation of A; by default the authors' 1e-4 for a shared rule
            and 0.01 for one rule per projection.
        sites: ``compacter`` (attention and feed-forward), ``compacter++`` (feed-forward), or any of
            ``attention``, ``ffn``, ``cross_attention``.
        placement: ``sequential`` as in the paper, or another placement of
            :class:`lightning_pelt.Adapter`.
        activation: ``gelu_new`` as in the paper, or another activation of an adapter.
        gate: None for ungated. It reads ``h``.
        name: of its parameter group, gates and log lines.

    Raises:
        ValueError: ``n`` or ``rank`` is below 1, ``rule_std`` is not above 0, the name ``sites`` is
            unknown, or ``n`` does not divide a width of the model.

    Example:
        >>> from lightning_pelt import Compacter, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attachment = attach(tiny_bert(), Plan.uniform(Compacter(n=4, bottleneck=8)))
        >>> {name: count.trained for name, count in attachment.counts.items()}
        {'norm': 320, 'compacter': 544}
    """

    n: int = 4
    rank: int = 1
    bottleneck: int | None = None
    reduction_factor: int = 32
    share_rule: bool = True
    factorized: bool = True
    learn_rule: bool = True
    rule_std: float | None = None
    sites: str | Sequence[str] = "compacter"
    placement: Placement = "sequential"
    activation: str = "gelu_new"
    gate: Gate | None = None
    name: str = "compacter"

    tunes_norms = True
    weight_decay = False  # a rule of zeros silences every adapter

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("n", "rank"):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"Compacter has {field}={getattr(self, field)}: it must be at least 1"
                )
        if self.start <= 0:
            raise ValueError(
                f"Compacter has rule_std={self.start:g}: it must be above 0, since a rule of zeros "
                "gets no gradient and the adapters never learn"
            )
        if isinstance(self.sites, str) and self.sites not in (*VARIANTS, *SUBLAYERS):
            raise unknown("sites of Compacter", self.sites, (*VARIANTS, *SUBLAYERS))
        if not self.learn_rule and self.start < ALMOST_NOTHING:
            warnings.warn(
                f"Compacter has a frozen rule of size {self.start:g}: the adapters' weights are "
                "multiplied by it twice, so that they can hardly learn. Set learn_rule=True, or "
                "rule_std=0.1 or more.",
                stacklevel=3,
            )

    @property
    def start(self) -> float:
        """Standard deviation of the rule at the start."""
        if self.rule_std is not None:
            return self.rule_std
        return 1e-4 if self.share_rule else OWN_RULE_STD

    @property
    def roles(self) -> Sequence[str]:
        """``sites`` without the names of the paper's variants."""
        return (
            VARIANTS.get(self.sites, (self.sites,)) if isinstance(self.sites, str) else self.sites
        )

    def where(self, anatomy: Anatomy) -> list[Site]:
        sites = sublayers(anatomy, self.roles, self.placement)
        widths = sorted({w for s in sites for w in (self.reads(s), s.d_out)})
        if any(width % self.n for width in widths):
            fits = [n for n in range(1, min(widths) + 1) if not any(width % n for width in widths)]
            nearest = min(fits, key=lambda n: (abs(n - self.n), n))
            raise ValueError(
                f"Compacter has n={self.n}, which does not divide the widths "
                f"{', '.join(map(str, widths))} of {anatomy.model_type}: the nearest n that fits "
                f"is {nearest}"
            )
        return sites

    def width(self, site: Site) -> int:
        return -(-super().width(site) // self.n) * self.n

    def shape(self, site: Site) -> Shape:
        """Widths of the bottleneck at ``site``."""
        return Shape(self.reads(site), self.width(site), site.d_out)

    def build_shared(self, anatomy: Anatomy, sites: Sequence[Site]) -> list[Part]:
        asked = {self.bottleneck or site.d_out // self.reduction_factor for site in sites}
        widths = {self.width(site) for site in sites}
        if asked != widths:
            before, after = (", ".join(map(str, sorted(each))) for each in (asked, widths))
            log.warning(
                "%s: bottleneck %s rounded up to %s, a multiple of n=%d",
                *(self.name, before, after, self.n),
            )
        start: dict[str, Any] = {"std": self.start, "learned": self.learn_rule}
        rule = Rule(self.n, **start) if self.share_rule else None
        made = build_stacks(
            self.name,
            anatomy,
            sites,
            self.shape,
            rule=rule,
            n=self.n,
            rank=self.rank if self.factorized else None,
            own=None if self.share_rule else start,
        )
        return made if rule is None else [Part("", f"{self.name}_rule", rule), *made]

    def build(self, place: Place) -> list[Part]:
        return build_bottlenecks(self.name, place, where=self.placement, activation=self.activation)
