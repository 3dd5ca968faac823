"""Fused experts: feed-forwards whose weights are stacked, as transformers runs them.

A class that transformers decorates with ``use_experts_implementation`` says how its weights lie,
and several implementations read them. None of these has a seam between its two products.
:func:`run_experts` computes the same by grouped products, and adds updates to both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.integrations import moe

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Update = Callable[[str, Tensor, Tensor], Tensor | None]


class Experts(NamedTuple):
    """The weights of fused experts.

    Attributes:
        number: of experts.
        weights: d_in and d_out of one expert, by ``in`` and ``out``.
    """

    number: int
    weights: dict[str, tuple[int, int]]


def experts_of(module: nn.Module) -> Experts | None:
    """The experts in a module; None if it is of another kind, or its weights are quantised."""
    decorated = hasattr(type(module).forward, "__wrapped__") and hasattr(module, "_apply_gate")
    if not decorated or not hasattr(module, "is_transposed") or not hasattr(module, "has_gate"):
        return None
    names = {"in": "gate_up_proj" if module.has_gate else "up_proj", "out": "down_proj"}
    weights, count = {}, 0
    for role, name in names.items():
        weight = module._parameters.get(name)
        if weight is None or weight.dim() != 3 or weight.dtype not in FLOATS:
            return None
        count, *shape = weight.shape
        d_in, d_out = shape if module.is_transposed else reversed(shape)
        weights[role] = d_in, d_out
    return Experts(count, weights)


def run_experts(
    module: Any, hidden: Tensor, chosen: Tensor, shares: Tensor, update: Update
) -> Tensor:
    """The output of fused experts with updates, as transformers' grouped implementation has it.

    Args:
        module: the experts.
        hidden: (N, d).
        chosen: the experts of each token, (N, k).
        shares: their factors, (N, k).
        update: gets ``in`` or ``out``, what this product reads, (N k, d_in) ordered by expert, and
            for each expert the number of the row behind its last one, (experts,). It returns what
            is added to the product, (N k, d_out), or None.

    Returns:
        (N, d)

    Raises:
        ValueError: the experts are distributed over processes.
    """
    if getattr(module, "_is_expert_parallel", False):
        raise ValueError(
            f"{type(module).__name__} is distributed over processes (expert parallelism), where "
            "experts take no update: load the model without a plan that distributes experts"
        )
    experts, order = torch.sort(chosen.reshape(-1), stable=True)
    numbers = torch.arange(module.num_experts, device=experts.device)
    ends = torch.searchsorted(experts, numbers, right=True).to(torch.int32)
    first = "gate_up_proj" if module.has_gate else "up_proj"
    inner = _product(module, first, hidden[order // chosen.shape[-1]], experts, ends, update)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    outer = _product(module, "down_proj", inner, experts, ends, update)
    if getattr(module, "has_post_expert_norm", False):
        outer = module.post_expert_norm(outer)
    outer = outer * shares.reshape(-1)[order].unsqueeze(-1)
    outer = outer[torch.argsort(order)]
    return outer.view(len(hidden), -1, outer.shape[-1]).sum(1).to(hidden.dtype)


def _product(
    module: Any, name: str, x: Tensor, experts: Tensor, ends: Tensor, update: Update
) -> Tensor:
    weight = getattr(module, name)
    x = x.to(weight.dtype)  # under autocast too, which grouped products do not know
    y = grouped(x, weight if module.is_transposed else weight.transpose(1, 2), ends)
    if module.has_bias:
        y = y + getattr(module, f"{name}_bias")[experts]
    added = update("out" if name == "down_proj" else "in", x, ends)
    return y if added is None else y + added.to(y.dtype)


def grouped(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """x (S, d_in) in groups, weights (groups, d_in, d_out), ends (groups,) -> (S, d_out)."""
    product: Tensor = moe._grouped_mm(x, weights, offs=ends)
    return product
