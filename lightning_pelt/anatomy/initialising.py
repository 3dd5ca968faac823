"""Initial values of tensors that no file holds, from the model's own initialisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import guard_torch_init_functions


@torch.no_grad()
def initialise(model: PreTrainedModel, chosen: Callable[[Tensor], bool]) -> None:
    """Give the tensors of a model that are ``chosen`` the values that the model starts with.

    All others are out of reach meanwhile: the initialisation of a module may also be that of
    modules inside it (CLIP). Weights are drawn from torch's global generator, and frequencies,
    positions and masks are computed.

    Args:
        model: is changed in place.
        chosen: whether a parameter or buffer is to be initialised.
    """
    before = [
        (table, name, tensor)
        for module in model.modules()
        for table in _tables(module)
        for name, tensor in table.items()
        if tensor is not None and not chosen(tensor)
    ]
    modules = list(_with_owners(model, model))
    try:
        for table, name, tensor in before:
            table[name] = _out_of_reach(tensor)
        with guard_torch_init_functions():
            for owner, module in modules:
                # One that reads a weight out of reach cannot tell what follows from it.
                with suppress(RuntimeError):
                    owner._init_weights(module)
    finally:
        for table, name, tensor in before:
            table[name] = tensor


def _tables(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    return module._parameters, module._buffers


def _out_of_reach(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    empty = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
    vars(empty)["_is_hf_initialized"] = True  # transformers' functions pass it by
    return empty


def _with_owners(
    owner: PreTrainedModel, module: nn.Module
) -> Iterator[tuple[PreTrainedModel, nn.Module]]:
    """The modules below ``module`` and itself, each with the innermost model around it."""
    for child in module.children():
        yield from _with_owners(child if isinstance(child, PreTrainedModel) else owner, child)
    yield owner, module
