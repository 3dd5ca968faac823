"""Hooks that record a forward, and cut its graph into pieces between linear layers.

A gradient of a recorded tensor ends at the nearest linear layers in front of it. Attentions are
recorded where transformers' attention interface calls them, and elsewhere by their softmax: its
input is a product of two tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import AttentionInterface

from lightning_pelt.anatomy._graph import products
from lightning_pelt.anatomy.calls import (
    AttentionCall,
    Call,
    Recording,
    acts_as_linear,
    first_tensor,
    is_linear,
)
from lightning_pelt.anatomy.dummy_inputs import INTERFACE

FUSED = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
SOFTMAX = (torch.softmax, Tensor.softmax, torch.special.softmax, F.softmax)


class Recorder:
    """Fills a recording.

    Attributes:
        recording: grows with every call.
    """

    def __init__(self, device: torch.device) -> None:
        self.recording = Recording()
        self._running: list[Call] = []
        self._on_interface: AttentionCall | None = None
        self._zero = torch.zeros((), device=device, requires_grad=True)

    @contextmanager
    def recording_of(self, base: nn.Module) -> Iterator[None]:
        """Record the calls of the modules of ``base``."""
        handles = []
        for module in base.modules():
            handles.append(module.register_forward_pre_hook(self._start, with_kwargs=True))
            handles.append(module.register_forward_hook(self._end, with_kwargs=True))
        try:
            with INTERFACE, _observed(self._attend), _Functions(self):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _start(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        tensors = {k: v for k, v in (*enumerate(args), *kwargs.items()) if isinstance(v, Tensor)}
        call = Call(module, tensors, keywords=frozenset(kwargs))
        self.recording.calls.append(call)
        self._running.append(call)

    def _end(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        call, value = self._running.pop(), first_tensor(output)
        call.linear = acts_as_linear(call, output)
        if value is not None and value.is_floating_point() and (value is output or call.linear):
            if call.linear:
                value = value.detach()
            if not value.requires_grad:
                # Not requires_grad_(): DeBERTa changes the output in place, which a leaf forbids.
                value = value + self._zero.to(value.dtype)
            output = value if isinstance(output, Tensor) else (value, *output[1:])
        call.output = value
        return output

    def _attend(self, function: Callable, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        """Call an attention function of the interface on (query, key, value, ...)."""
        names = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        query, key, value = names["query"], names["key"], names["value"]
        index = len(self.recording.calls)
        call = AttentionCall(module, index, True, [(query, key)], value)
        self.recording.attention_calls.append(call)
        self._on_interface = call
        try:
            return function(module, *args, **kwargs)
        finally:
            self._on_interface = None

    def softmax(self, scores: Tensor, weights: Tensor) -> Tensor:
        """The weights (..., Q, K) with a mark; off the interface another graph begins there.

        A sink is a column behind those of the keys.
        """
        if weights.dim() < 3:  # not of an attention, such as a router's
            return weights
        call, mark = self._on_interface, self._mark(weights)
        if call is not None:
            if call.seen is not None:  # a second softmax of one attention
                return weights
            call.mark, call.seen = mark, _seen(weights[..., : call.operands[0][1].shape[-2]])
            return weights + mark
        operands = products(scores)
        if not operands:
            return weights
        self._add(operands, mark=mark, seen=_seen(weights))
        return weights.detach() + mark

    def fused(self, result: Tensor, names: dict[str, Any]) -> Tensor:
        """The result of a fused attention, with a mark."""
        call, mark, seen = self._on_interface, self._mark(result), _seen_by_mask(names)
        if call is None:
            operands = [(names["query"], names["key"])]
            self._add(operands, value=names["value"], mark=mark, seen=seen)
        elif call.seen is None:
            call.mark, call.seen = mark, seen
        return result + mark

    def _mark(self, tensor: Tensor) -> Tensor:
        return self._zero.detach().clone().to(tensor.dtype).requires_grad_()

    def _add(self, operands: list[tuple[Tensor, Tensor]], **tensors: Tensor | None) -> None:
        modules = [call.module for call in reversed(self._running)]
        owner = next((m for m in modules if any(map(is_linear, m.modules()))), None)
        if owner is not None:
            index = len(self.recording.calls)
            call = AttentionCall(owner, index, False, operands, **tensors)
            self.recording.attention_calls.append(call)


class _Functions(TorchFunctionMode):
    """Shows a recorder every softmax and every fused attention."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in SOFTMAX:
            return self.recorder.softmax(args[0] if args else kwargs["input"], result)
        if func is F.scaled_dot_product_attention:
            return self.recorder.fused(result, dict(zip(FUSED, args, strict=False)) | kwargs)
        return result


def _seen(weights: Tensor) -> Tensor:
    """(..., Q, K) -> (Q, K)."""
    return (weights.detach() > 0).flatten(0, -3).any(0)


def _seen_by_mask(names: dict[str, Any]) -> Tensor | None:
    """The visibility in a fused attention, (Q, K)."""
    mask, query, key = names.get("attn_mask"), names["query"], names["key"]
    every = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
    if mask is None:
        return every.tril() if names.get("is_causal") else every
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return visible.expand(*(1,) * (3 - visible.dim()), *visible.shape).flatten(0, -3).any(0) & every


@contextmanager
def _observed(attend: Callable[..., Any]) -> Iterator[None]:
    """Pass each attention function of transformers' attention interface to ``attend``."""
    original = AttentionInterface.get_interface

    def get_interface(self: AttentionInterface, name: str, default: Callable) -> Callable:
        function = original(self, name, default)

        def observed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return attend(function, module, args, kwargs)

        return observed

    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        AttentionInterface.get_interface = original  # type: ignore[method-assign]
