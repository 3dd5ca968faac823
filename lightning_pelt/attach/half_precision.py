"""Keeps what is trained of a half-precision model in fp32."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_pelt.attach.builder import CHILD
from lightning_pelt.methods.submodule import Removable

HALF = (torch.float16, torch.bfloat16)


def keep_in_fp32(model: nn.Module, trained: Collection[str]) -> list[Removable]:
    """Convert the trained weights of a half-precision model to fp32.

    An optimizer step is usually smaller than the distance of two neighbouring half-precision
    numbers, so that weights in half precision do not move. Modules whose weights are all trained,
    such as a head or a norm, are converted as a whole: they cast their inputs to fp32 and their
    outputs to the dtype of the base. A precision plugin for ``16-true`` or ``bf16-true`` converts
    them back afterwards, and the casts then do nothing.

    Args:
        model: is changed in place.
        trained: names of the trained parameters of the model itself, submodules aside.

    Returns:
        What converts the modules back.
    """
    named = dict(model.named_parameters())
    chosen = {id(named[name]) for name in trained if name in named}
    if not any(named[name].dtype in HALF for name in trained if name in named):
        return []
    base = next(_frozen_weights(model, chosen), None)
    return [InFP32(module, base) for module in _whole_modules(model, chosen)]


def _frozen_weights(model: nn.Module, trained: set[int]) -> Iterator[Weight]:
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            ours = parameter is not None and (id(parameter) in trained or CHILD in path.split("."))
            if parameter is not None and not ours and parameter.dtype in HALF:
                yield Weight(module, name)


def _whole_modules(module: nn.Module, trained: set[int]) -> Iterator[nn.Module]:
    """The outermost modules below ``module`` whose parameters are all trained."""
    parameters = [p for n, p in module.named_parameters() if CHILD not in n.split(".")]
    called = not isinstance(module, (nn.ModuleList, nn.ModuleDict))
    if called and parameters and all(id(parameter) in trained for parameter in parameters):
        yield module
        return
    for name, child in module.named_children():
        if name != CHILD:
            yield from _whole_modules(child, trained)


class Weight:
    """Refers to a parameter by its module: conversions and strategies may replace it."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype now."""
        return getattr(self.module, self.name).dtype


class InFP32:
    """Keeps one module in fp32 inside a half-precision model.

    The hooks are bound methods, so that a model with them can be copied and pickled.

    Args:
        module: is converted.
        base: a weight of the frozen base; None if everything is trained.
    """

    def __init__(self, module: nn.Module, base: Weight | None) -> None:
        self.module, self.base = module, base
        self.weight = next(
            Weight(child, name)
            for child in module.modules()
            for name, parameter in child._parameters.items()
            if parameter is not None
        )
        self.before = self.weight.dtype
        module.float()
        self.handles: Sequence[Removable] = (
            module.register_forward_pre_hook(self.cast_inputs, with_kwargs=True),
            module.register_forward_hook(self.cast_outputs),
        )

    def cast_inputs(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[Any, Any]:
        """Cast half-precision tensors to the dtype of the module's weights."""
        dtype = self.weight.dtype
        return tuple(_cast(x, HALF, dtype) for x in args), {
            name: _cast(x, HALF, dtype) for name, x in kwargs.items()
        }

    def cast_outputs(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Cast fp32 tensors to the dtype of the base."""
        if self.base is None or self.base.dtype not in HALF:
            return output
        dtype = self.base.dtype
        if isinstance(output, (tuple, list)):
            return type(output)([_cast(x, (torch.float32,), dtype) for x in output])
        return _cast(output, (torch.float32,), dtype)

    def remove(self) -> None:
        """Convert the module to the dtype of the base."""
        for handle in self.handles:
            handle.remove()
        self.module.to(self.before if self.base is None else self.base.dtype)


def _cast(value: Any, kinds: tuple[torch.dtype, ...], dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.dtype in kinds else value
