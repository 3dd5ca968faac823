"""Building on the meta device: submodules have values, whether or not the base has them yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_pelt.anatomy import is_without_values
from lightning_pelt.methods.base import Method


def refuse_several(model: nn.Module) -> None:
    """Raise if ``model`` is to have several adapters, and is on the meta device.

    Raises:
        ValueError: the remedy.
    """
    if is_without_values(model):
        raise ValueError(
            f"{type(model).__name__} is on the meta device, where a model can have one plan, "
            "attach(model, plan): load its weights first, then add named adapters"
        )


def refuse_around(outer: nn.Module, model: PreTrainedModel) -> None:
    """Raise if a model without values is inside of another one, which would be frozen too.

    Args:
        outer: holds ``model``.
        model: to which a plan is to be attached.

    Raises:
        ValueError: the message names the model around it.
    """
    around = [
        module
        for module in outer.modules()
        if isinstance(module, PreTrainedModel) and module is not model and model in module.modules()
    ]
    if around and is_without_values(around[0]):
        raise ValueError(
            f"{type(model).__name__} is inside of {type(around[0]).__name__}, which is on the meta "
            "device: attach to the whole of it, without path=..., or load its weights first"
        )


class WithoutValues(RuntimeError):
    """A submodule was made of weights that have no values."""


def device_of(host: nn.Module, model: nn.Module) -> torch.device:
    """Where the submodules of ``host`` belong: with its weights, on the CPU before these are."""
    nearest = next(host.parameters(), next(model.parameters(), None))
    return torch.device("cpu") if nearest is None or nearest.is_meta else nearest.device


def refuse_without_values(submodule: nn.Module) -> None:
    """Raise if a tensor of a submodule is on the meta device.

    Raises:
        WithoutValues: :func:`needs_values` names its method.
    """
    tensors = (*submodule.parameters(), *submodule.buffers())
    if any(tensor.is_meta for tensor in tensors):
        raise WithoutValues("a tensor without values")


@contextmanager
def needs_values(method: Method, model: nn.Module) -> Iterator[None]:
    """Build submodules of ``method``, which may read the weights of the base.

    Raises:
        ValueError: it does, and they are on the meta device.
    """
    try:
        yield
    except RuntimeError as error:
        on_meta = any(parameter.is_meta for parameter in model.parameters())
        if not on_meta or not (isinstance(error, WithoutValues) or "meta tensor" in str(error)):
            raise
        raise ValueError(
            f"{type(method).__name__} ({method.name!r}) starts from weights of the base, which are "
            "on the meta device and have no values yet: load the base first, then attach, or take "
            "a method that does not read them"
        ) from error
