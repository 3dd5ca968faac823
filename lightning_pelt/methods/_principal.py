"""The principal part of a weight, from which PiSSA starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightning_pelt.anatomy import Site

EXACT = 1024  # up to this width, all singular vectors are computed
SPARE = 8  # further columns of a randomised decomposition
ITERATIONS = 8  # of the power method
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.no_grad()
def principal_factors(linear: nn.Module, site: Site, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, d_in) and B (d_out, rank) with equal norms, so that B A is nearest to the weight.

    Above a width of 1,024, subspace iteration from a random start (Halko et al., 2011, algorithm
    4.4; https://arxiv.org/abs/0909.4061) takes the place of the full decomposition. It draws from
    torch's generator.

    Args:
        linear: the layer.
        site: the channels of its output.
        rank: number of singular values.

    Raises:
        ValueError: the weight is quantised, or has fewer singular values.
    """
    weight = _weight(linear, site.path)
    if site.channels is not None:
        weight = weight[torch.tensor(site.channels, device=weight.device)]
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if rank > min(weight.shape):
        raise ValueError(
            f"LoRA(init='pissa') has rank r={rank}, and the weight of {site.path} of shape "
            f"{tuple(weight.shape)} has {min(weight.shape)} singular values: use "
            f"r={min(weight.shape)} or less, or init='random'"
        )
    left, sizes, right = _decomposed(weight, rank)
    root = sizes[:rank].sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def _weight(linear: nn.Module, path: str) -> Tensor:
    """(d_out, d_in)."""
    weight = linear._parameters.get("weight")
    if weight is None or type(weight.data) is not Tensor or weight.dtype not in FLOATS:
        kind = type(linear).__name__
        raise ValueError(
            f"LoRA(init='pissa') starts from the singular vectors of weights, and those of {path} "
            f"({kind}) are quantised or computed: load the base in full precision, or use "
            "init='random'"
        )
    return weight.detach().T if isinstance(linear, Conv1D) else weight.detach()


def _decomposed(weight: Tensor, rank: int) -> Sequence[Tensor]:
    """U, S and V^T, the largest singular values first."""
    columns = rank + SPARE
    if min(weight.shape) <= max(EXACT, columns):
        return torch.linalg.svd(weight, full_matrices=False)
    start = torch.randn(weight.shape[1], columns, device="cpu").to(weight)
    basis = torch.linalg.qr(weight @ start).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.T @ basis).Q).Q
    left, sizes, right = torch.linalg.svd(basis.T @ weight, full_matrices=False)
    return basis @ left, sizes, right
