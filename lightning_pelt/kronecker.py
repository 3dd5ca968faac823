"""Projections as sums of Kronecker products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_pelt.submodule import Removable, Submodule

GAIN = 2**0.5


class Rule(Submodule):
    """The n matrices (n, n) that all projections of a method share; owned once, at the root.

    A rule that is not learned is a buffer, which no helper that unfreezes parameters can wake.
    """

    def __init__(self, n: int, *, std: float, learned: bool, count: int | None = None) -> None:
        super().__init__()
        shape = (n, n, n) if count is None else (count, n, n, n)
        values = torch.empty(shape).normal_(std=std)
        if learned:
            self.A = nn.Parameter(values)
        else:
            self.register_buffer("A", values)

    def install(self, model: nn.Module) -> list[Removable]:
        return []


class Factors(nn.Module):
    r"""The factors of ``count`` projections of one shape, :math:`H = \sum_i A_i \otimes (S_i R_i)`
    (Karimi Mahabadi et al., 2021, equation 5; https://arxiv.org/abs/2106.04647).

    :math:`H_{(a,p),(c,q)} = \sum_i A_{iac} \sum_\rho S_{ip\rho} R_{i\rho q}` takes inputs of
    ``d_in`` = n K to outputs of ``d_out`` = n D.

    Args:
        rank: of each S R; None holds a full W (n, K, D) in its place, as PHM layers do.
        rule: shared by all, (n, n, n); None gives every projection a rule of its own.
        own: arguments of the :class:`Rule` of its own.
    """

    def __init__(
        self,
        count: int,
        d_in: int,
        d_out: int,
        *,
        n: int,
        rank: int | None,
        own: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        rows, columns = d_in // n, d_out // n
        if rank is None:
            self.W = nn.Parameter(torch.empty(count, n, rows, columns))
        else:
            self.S = nn.Parameter(torch.empty(count, n, rows, rank))
            self.R = nn.Parameter(torch.empty(count, n, rank, columns))
        self.rule = None if own is None else Rule(n, count=count, **own)
        for tensor in [self.W] if rank is None else [self.S, self.R]:
            for matrix in tensor.data.flatten(0, 1):  # each slice by its own fans
                nn.init.xavier_uniform_(matrix, gain=GAIN)

    def forward(self, rule: Tensor | None, *, transposed: bool = False) -> Tensor:
        """Every H in fp32, (count, d_in, d_out), or (count, d_out, d_in) where ``transposed``."""
        full = "W" in self._parameters
        blocks = self.W.float() if full else self.S.float() @ self.R.float()
        if rule is None and self.rule is None:  # n = 1: a plain low-rank product
            whole = blocks[:, 0]
            return whole.mT.contiguous() if transposed else whole
        own = self.rule is not None
        A = (self.rule.A if own else rule).float()  # type: ignore[union-attr]
        order = "mcqap" if transposed else "mapcq"
        products = torch.einsum(f"{'m' if own else ''}iac,mipq->{order}", A, blocks)
        return products.flatten(3, 4).flatten(1, 2)
