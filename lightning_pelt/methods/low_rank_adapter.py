"""Adapters whose projections are low-rank products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods._bottleneck import BottleneckMethod
from lightning_pelt.methods._stacked_bottlenecks import Shape, build_bottlenecks, build_stacks
from lightning_pelt.methods._sublayer_hooks import Placement
from lightning_pelt.methods.base import Part, Place
from lightning_pelt.methods.gate import Gate


@dataclass(frozen=True)
class LowRankAdapter(BottleneckMethod):
    r"""Adapters whose two projections are products :math:`H = L R` of rank ``rank``, the baseline
    of the Compacter paper (Karimi Mahabadi et al., 2021, section 4;
    https://arxiv.org/abs/2106.04647).

    :math:`f + H_{up}^\top \phi(H_{down}^\top h + b_{down}) + b_{up}`, with matrix products. The
    authors' code multiplies L and R element by element, which is equal for rank 1 only.

    Args:
        rank: of both projections.
        bottleneck: width of the bottleneck; by default the model's width divided by
            ``reduction_factor``.
        reduction_factor: see ``bottleneck``.
        sites: ``attention``, ``ffn``, ``cross_attention``.
        placement: one of the placements of :class:`lightning_pelt.Adapter`.
        activation: ``gelu_new`` as in the paper, or another activation of an adapter.
        gate: None for ungated. It reads ``h``.
        name: of its parameter group, gates and log lines.

    Raises:
        ValueError: a rank or a width below 1.

    Example:
        >>> from lightning_pelt import LowRankAdapter, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> plan = Plan.uniform(LowRankAdapter(bottleneck=4, sites=["ffn"]), norms=False)
        >>> attach(tiny_bert(), plan).counts["low_rank"].trained
        216
    """

    rank: int = 1
    bottleneck: int | None = None
    reduction_factor: int = 32
    sites: Sequence[str] = ("attention", "ffn")
    placement: Placement = "sequential"
    activation: str = "gelu_new"
    gate: Gate | None = None
    name: str = "low_rank"

    tunes_norms = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"LowRankAdapter has rank={self.rank}: it must be at least 1")

    def shape(self, site: Site) -> Shape:
        """Widths of the bottleneck at ``site``."""
        return Shape(self.reads(site), self.width(site), site.d_out)

    def build_shared(self, anatomy: Anatomy, sites: Sequence[Site]) -> list[Part]:
        return build_stacks(
            self.name, anatomy, sites, self.shape, rule=None, n=1, rank=self.rank, own=None
        )

    def build(self, place: Place) -> list[Part]:
        return build_bottlenecks(self.name, place, where=self.placement, activation=self.activation)
