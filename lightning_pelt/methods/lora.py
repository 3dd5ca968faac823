"""LoRA: a low-rank update of a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.anatomy.embeddings import EMBEDDING
from lightning_pelt.methods._embedding_lora import EmbeddingLoRA
from lightning_pelt.methods._experts_lora import ExpertsLoRA
from lightning_pelt.methods._lora_factors import LoRADown, LoRAUp
from lightning_pelt.methods.base import Cost, Part, Place
from lightning_pelt.methods.gate import Gate
from lightning_pelt.methods.linear import LinearMethod
from lightning_pelt.utils.errors import unknown

Init = Literal["random", "pissa"]


@dataclass(frozen=True)
class LoRA(LinearMethod):
    r"""Low-rank adaptation, :math:`y = W x + s \, B A x` (Hu et al., 2022;
    https://arxiv.org/abs/2106.09685).

    The scale ``s`` is ``alpha / r``, or ``alpha / sqrt(r)`` with ``rslora`` (Kalajdzievski, 2023;
    https://arxiv.org/abs/2312.03732). A gate replaces it, as in UniPELT.

    With ``init="pissa"`` (Meng et al., 2024; https://arxiv.org/abs/2404.02948), A and B start as
    the principal singular values and vectors of W: :math:`y = W x + s (B A - B_0 A_0) x`, where
    :math:`s B_0 A_0` is the best approximation of W of rank ``r``. This equals the paper's trained
    A and B over a frozen residual :math:`W - s B_0 A_0`, and the base keeps its weights. It costs a
    decomposition of each weight in ``attach``, as many further values as are trained, which
    checkpoints hold too, and the time of a LoRA of rank ``2 r``; merged, it costs nothing. Weight
    decay does not apply, since it would take the principal part away from W.

    Args:
        r: rank of the update.
        alpha: numerator of the scale; ignored when gated.
        dropout: probability of dropout on the input of A, and of A_0.
        rslora: divide ``alpha`` by the square root of the rank.
        init: ``random``, B at zero and A at random; or ``pissa``.
        sites: roles to extend: ``query``, ``key``, ``value``, ``output``, ``ffn.in``, ``ffn.out``,
            ``expert.in`` and ``expert.out``, the stacked weights of fused experts (Mixtral,
            Qwen3-MoE), ungated; ``embedding``, the embeddings of the words, without dropout;
            ``vocabulary``, the projection onto them; or a glob such as ``*attention.*``. Where a
            projection is tied to the embeddings, an update of one leaves the other as it is, and
            ``merge`` refuses it.
        gate: None for ungated.
        name: of its parameter group, gates and log lines.

    Raises:
        ValueError: a rank below 1, a dropout outside [0, 1), or an unknown ``init``. In ``attach``
            with ``pissa``: a weight is quantised, is on the meta device, or has a lower rank.

    Example:
        >>> from lightning_pelt import LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attach(tiny_bert(), Plan.uniform(LoRA(r=4))).counts["lora"].trained
        1024
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    init: Init = "random"
    sites: Sequence[str] = ("query", "value")
    gate: Gate | None = None
    name: str = "lora"

    mergeable = True
    takes_experts = True

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"LoRA has rank r={self.r}: it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA has dropout={self.dropout}: it must lie in [0, 1)")
        if self.init not in get_args(Init):
            raise unknown("init of LoRA", self.init, get_args(Init))

    @property
    def weight_decay(self) -> bool:  # type: ignore[override]
        """Whether weight decay applies: not from PiSSA's start, where zero is not neutral."""
        return self.init != "pissa"

    @property
    def scale(self) -> float:
        """The factor of B A: 1 when gated, since the gate replaces it."""
        if self.gate is not None:
            return 1.0
        return self.alpha / (self.r**0.5 if self.rslora else self.r)

    def size(self, site: Site) -> str:
        return f"r={self.r}"

    def where(self, anatomy: Anatomy) -> list[Site]:
        found = super().where(anatomy)
        if self.init != "random" and any(site.role == EMBEDDING for site in found):
            raise ValueError(
                f"LoRA has init={self.init!r} at 'embedding', and starts from the principal part "
                "of linear layers only: give the embedding a LoRA of another name without it"
            )
        experts = next((site for site in found if site.experts), None)
        if experts is not None and (self.gate is not None or self.init != "random"):
            option = "a gate" if self.gate is not None else f"init={self.init!r}"
            raise ValueError(
                f"LoRA has {option} at {experts.role!r}, the stacked weights of experts, which "
                "take no such thing: give the experts a LoRA of another name without it"
            )
        return found

    def extends(self, site: Site) -> bool:
        return site.is_linear or site.experts is not None or site.role == EMBEDDING

    def cost(self, sites: Sequence[Site]) -> Cost:
        experts = sum((s.d_in + s.d_out) * s.experts for s in sites if s.experts)
        return Cost(0, experts + sum(_read(s) + s.d_out for s in sites if not s.experts))

    def sized(self, size: int) -> LoRA:
        """With rank ``size``, and ``alpha`` so that the scale equals that of the defaults.

        Rank-stabilised, ``alpha`` stays: its scale follows the rank.
        """
        return replace(
            self, r=size, alpha=self.alpha if self.rslora else LoRA.alpha / LoRA.r * size
        )

    def build(self, place: Place) -> list[Part]:
        if place.sites[0].role == EMBEDDING:
            (site,), (gate,) = place.sites, place.gates
            return [Part(site.path, f"{self.name}_words", EmbeddingLoRA(self, site, gate))]
        if place.sites[0].experts:
            key, path = f"{self.name}_experts", place.sites[0].path
            return [Part(path, key, ExpertsLoRA(self, place.sites))]
        down = LoRADown(self, place.sites)
        parts = [Part(place.sites[0].source.path, f"{self.name}_down", down)]
        paths = dict.fromkeys(site.path for site in place.sites)
        for path in paths:
            here = [i for i, site in enumerate(place.sites) if site.path == path]
            sites, gates = [place.sites[i] for i in here], [place.gates[i] for i in here]
            up = LoRAUp(self, down, here, sites=sites, gates=gates)
            parts.append(Part(path, f"{self.name}_up", up))
        return parts


def _read(site: Site) -> int:
    """Rows of A^T: the width of what a layer reads, or the number of words of an embedding."""
    return site.d_in if site.role == EMBEDDING else site.source.width
