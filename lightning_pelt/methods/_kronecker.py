"""Projections as sums of Kronecker products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_pelt.methods.submodule import Removable, Submodule

GAIN = 2**0.5


class Rule(Submodule):
    """The n matrices (n, n) that all projections of a method share, owned once by the root.

    A rule that is not learned is a buffer, so that code that unfreezes parameters leaves it frozen.
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
    ``d_in`` = n K to outputs of ``d_out`` = n D. All products of factors are computed for all
    projections at once and in fp32: the initial values are too small for half precision.

    Args:
        rank: r of each S R; None for a full W (n, K, D) instead, as in PHM layers.
        own: arguments of a :class:`Rule` per projection; None if all projections share one.
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
        self.n, self.rank, self.d_in, self.d_out = n, rank, d_in, d_out
        rows, columns = d_in // n, d_out // n
        if rank is None:
            self.W = nn.Parameter(torch.empty(count, n, rows, columns))
        else:
            self.S = nn.Parameter(torch.empty(count, n, rows, rank))
            self.R = nn.Parameter(torch.empty(count, n, rank, columns))
        self.rule = None if own is None else Rule(n, count=count, **own)
        for tensor in [self.W] if rank is None else [self.S, self.R]:
            for matrix in tensor.data.flatten(0, 1):  # fan-in and fan-out of one slice
                nn.init.xavier_uniform_(matrix, gain=GAIN)

    def whole(self, rule: Tensor, *, transposed: bool = False) -> Tensor:
        """Every H, (count, d_in, d_out), or (count, d_out, d_in) if ``transposed``.

        Args:
            rule: the shared A (n, n, n); ignored if every projection has its own.
        """
        blocks = self.W.float() if self.rank is None else self.S.float() @ self.R.float()
        product = self._product(rule, "mipq->mcqap" if transposed else "mipq->mapcq", blocks)
        return product.flatten(3, 4).flatten(1, 2)

    @property
    def thin(self) -> bool:
        """Whether two products with the factors need less than half the multiplications of H.

        Multiplications per token: k n r + n n r d, and k d. Fewer are not always faster: on a GPU,
        narrow products are limited by memory bandwidth.
        """
        if self.rank is None:
            return False
        inner = self.n * self.rank
        wide, narrow = max(self.d_in, self.d_out), min(self.d_in, self.d_out)
        return 2 * (wide * inner + self.n * inner * narrow) <= wide * narrow

    def thin_in(self, rule: Tensor) -> tuple[Tensor, Tensor]:
        """F (count, K, n r) and G (count, n n r, d_out) with x H = [x_a F, over all a] G.

        For a wide input: x_a (..., K) are its n pieces.
        """
        first = self.S.float().permute(0, 2, 1, 3).flatten(2)
        second = self._product(rule, "mirq->maircq", self.R.float())
        return first, second.flatten(4, 5).flatten(1, 3)

    def thin_out(self, rule: Tensor) -> tuple[Tensor, Tensor]:
        """F (count, d_in, n, n r) and G (count, n r, D) with (x H)_c = x F_c G.

        For a wide output: (x H)_c (..., D) are its n pieces.
        """
        first = self._product(rule, "mipr->mapcir", self.S.float())
        return first.flatten(4, 5).flatten(1, 2), self.R.float().flatten(1, 2)

    def _product(self, rule: Tensor, equation: str, factor: Tensor) -> Tensor:
        if self.rule is None:
            return torch.einsum(f"iac,{equation}", rule.float(), factor)
        return torch.einsum(f"miac,{equation}", self.rule.A.float(), factor)
