"""MiSS: an update of a linear layer whose rows repeat one small matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.anatomy import Site
from lightning_pelt.methods.base import Cost, Part, Place
from lightning_pelt.methods.gate import Gate, GateView
from lightning_pelt.methods.linear import LinearMethod, LinearUpdate


@dataclass(frozen=True)
class MiSS(LinearMethod):
    r"""Matrix shard sharing, :math:`y = W x + D^\top \sum_k x_k` (Kang and Yin, 2024;
    https://arxiv.org/abs/2409.15371).

    The input is cut into shards :math:`x_k` of ``r`` channels, the last one filled up with zeros.
    All of them share the trained matrix D (r, d_out), which starts at zero. A layer has half the
    parameters of a LoRA of the same rank where it is square, and backward keeps the sum of the
    shards, ``r`` values a token. The method has no scale. This is the form that PEFT calls its
    default, without the variants ``bat`` and ``mini``.

    Args:
        r: width of a shard, and the rank of the update; at most the width of the input.
        dropout: probability of dropout on the input.
        sites: roles to extend: ``query``, ``key``, ``value``, ``output``, ``ffn.in``, ``ffn.out``,
            or a glob such as ``*attention.*``.
        gate: None for ungated.
        name: of its parameter group, gates and log lines.

    Raises:
        ValueError: a rank below 1, or a dropout outside [0, 1); in ``attach``, a rank beyond the
            width of an input.

    Example:
        >>> from lightning_pelt import MiSS, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> attach(tiny_bert(), Plan.uniform(MiSS(r=8))).counts["miss"].trained
        1024
    """

    r: int = 16
    dropout: float = 0.0
    sites: Sequence[str] = ("query", "value")
    gate: Gate | None = None
    name: str = "miss"

    mergeable = True

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"MiSS has rank r={self.r}: it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"MiSS has dropout={self.dropout}: it must lie in [0, 1)")

    def size(self, site: Site) -> str:
        return f"r={self.r}"

    def cost(self, sites: Sequence[Site]) -> Cost:
        return Cost(0, sum(site.d_out for site in sites))

    def sized(self, size: int) -> MiSS:
        return replace(self, r=size)

    def build(self, place: Place) -> list[Part]:
        for site in place.sites:
            if self.r > site.d_in:
                raise ValueError(
                    f"MiSS has rank r={self.r}, and the input of {site.path} has {site.d_in} "
                    f"channels: use r={site.d_in} or less"
                )
        pairs = zip(place.sites, place.gates, strict=True)
        return [
            Part(site.path, f"{self.name}_{site.label}", SharedShards(self, site, gate))
            for site, gate in pairs
        ]


class SharedShards(LinearUpdate):
    """The matrix D (r, d_out), which all shards of the input share."""

    def __init__(self, method: MiSS, site: Site, gate: GateView | None) -> None:
        super().__init__(site, gate)
        self.rank = method.r
        self.dropout = nn.Dropout(method.dropout) if method.dropout else None
        self.D = nn.Parameter(torch.zeros(method.r, site.d_out))

    def update(self, x: Tensor) -> Tensor:
        """D^T times the sum of the shards, (..., d_in) -> (..., d_out)."""
        if self.dropout is not None:
            x = self.dropout(x)
        D, over = self.D, -x.shape[-1] % self.rank
        x = F.pad(x, (0, over)) if over else x
        # In the dtype of D: a sum of many shards in half precision would lose digits.
        shards = x.unflatten(-1, (-1, self.rank)).sum(-2, dtype=D.dtype)
        return shards @ D

    def delta(self) -> Tensor:
        rows = torch.arange(self.site.d_in, device=self.D.device) % self.rank
        return self.D[rows].T
