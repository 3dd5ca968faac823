"""Adapters whose projections are low-rank products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_pelt import bottleneck, placement
from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.forge import Shape, forges, from_forges
from lightning_pelt.gate import Gate
from lightning_pelt.method import Method, Part, Place
from lightning_pelt.placement import Placement


@dataclass(frozen=True)
class LowRankAdapter(Method):
    r"""Adapters with :math:`H = L R` of rank ``rank`` in the place of both projections, the
    baseline of the Compacter paper (Karimi Mahabadi et al., 2021, section 4;
    https://arxiv.org/abs/2106.04647).

    :math:`f + H_{up}^\top \phi(H_{down}^\top h + b_{down}) + b_{up}`, with matrix products: the
    authors' code multiplies L and R element by element, which is the same for rank 1 alone.

    Args:
        rank: of both projections.
        bottleneck: width of the bottleneck; by default ``reduction_factor`` times smaller than the
            model's.
        sites: ``attention``, ``ffn``, ``cross_attention``.
        placement: ``sequential``, ``parallel``, ``unipelt`` or ``auto``, see
            :class:`lightning_pelt.Adapter`.
        activation: ``gelu_new`` as in the paper, or any of an adapter's.
        gate: None is ungated. It reads ``h``.
        name: of its parameter group, gates and log lines.

    Raises:
        ValueError: a rank or a width below 1.
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
        placement.check(self.placement)
        bottleneck.check(self)
        if self.rank < 1:
            raise ValueError(f"LowRankAdapter has rank={self.rank}: it must be at least 1")

    def where(self, anatomy: Anatomy) -> list[Site]:
        return placement.sublayers(anatomy, self.sites, self.placement)

    def gate_width(self, site: Site) -> int:
        return placement.reads(site, self.placement)

    def shape(self, site: Site) -> Shape:
        """Widths of the bottleneck at ``site``."""
        width = self.bottleneck or max(1, site.d_out // self.reduction_factor)
        return Shape(placement.reads(site, self.placement), width, site.d_out)

    def build_shared(self, anatomy: Anatomy, sites: Sequence[Site]) -> list[Part]:
        return forges(
            self.name, anatomy, sites, self.shape, rule=None, n=1, rank=self.rank, own=None
        )

    def build(self, place: Place) -> list[Part]:
        return from_forges(self.name, place, where=self.placement, activation=self.activation)
