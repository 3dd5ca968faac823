"""Tensor operations that the hooks of several methods share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_pelt.methods.current import recording


def first(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to a module's output, or to the first element of its output tuple."""
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    return change(output)


def linear_output(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to the output of a linear layer or a norm.

    Those of I-BERT return it with a scaling factor, which is None in floating point.

    Raises:
        ValueError: the layer computes in integers, of which the change gives no multiples.
    """
    if isinstance(output, Tensor):
        return change(output)
    values, *factors = output
    if any(factor is not None for factor in factors):
        raise ValueError(
            "the layer computes in integers, which an update does not: tune the model in floating "
            "point (quant_mode=False in its configuration), and quantize it afterwards"
        )
    return (change(values), *factors)


def first_tensor(output: Any) -> Tensor:
    """A module's output, or the first element of its output tuple."""
    return output[0] if isinstance(output, tuple) else output


def argument(args: tuple[Any, ...], kwargs: dict[str, Any], name: int | str) -> Tensor:
    """Positional or keyword argument ``name`` of a module's call."""
    return args[name] if isinstance(name, int) else kwargs[name]


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x.to(dtype)``, which takes ten times as long as the comparison if nothing is to do."""
    return x if x.dtype == dtype else x.to(dtype)


def match_dtype(x: Tensor, weight: Tensor) -> Tensor:
    """Cast ``x`` to the dtype of ``weight``, unless autocast does."""
    return x if x.dtype == weight.dtype or autocasts(x) else x.to(weight.dtype)


def autocasts(x: Tensor) -> bool:
    """Whether autocast chooses the dtype of products with ``x``."""
    return torch.is_autocast_enabled("cpu" if x.is_cpu else x.device.type)


def add_product(out: Tensor, left: Tensor, right: Tensor, *, scale: float = 1.0) -> Tensor:
    """``out + scale left @ right`` in one pass and in ``out``'s dtype.

    Shapes: out (..., n), left (..., k), right (k, n) -> (..., n).
    """
    left, right = cast(left, out.dtype), cast(right, out.dtype)
    if not torch.is_grad_enabled() and out.dim() == 3 and not recording() and len(out) == 1:
        return cast(torch.baddbmm(out, left, right[None], alpha=scale), out.dtype)  # no reshaping
    flat = torch.addmm(
        out.reshape(-1, out.shape[-1]),
        left.reshape(-1, left.shape[-1]),
        # Contiguous: with a transposed view of a (n, k) weight, both products of the backward end
        # in a dimension of k = 8, which takes three to five times as long on a CPU.
        right.contiguous(),
        alpha=scale,
    )
    return cast(flat.view(out.shape), out.dtype)


def refuse_reentrant(tensor: Tensor, what: str, *, instead: str = "") -> None:
    """Raise if ``tensor``, computed once per forward, is used in reentrant checkpointing.

    Raises:
        RuntimeError: a block runs without gradients and will be recomputed with them.
    """
    if tensor.requires_grad and not torch.is_grad_enabled():
        raise RuntimeError(
            f"reentrant activation checkpointing runs backward through the shared {what} once per "
            f"block, which fails: set use_reentrant=False{instead}"
        )
