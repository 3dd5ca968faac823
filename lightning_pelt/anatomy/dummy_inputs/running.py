"""Running a model once without side effects."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

# Held while the attention interface, or the implementation that a configuration names, is replaced.
INTERFACE = threading.RLock()
IMPLEMENTATION = "_attn_implementation_internal"
# What runs on any device and in any dtype. Other implementations are kernels of some devices.
ANYWHERE = ("eager", "sdpa", None)


def on(model: PreTrainedModel, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """``inputs`` on the device of ``model``, floats in its dtype."""
    moved = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            dtype = model.dtype if value.is_floating_point() else value.dtype
            value = value.to(model.device, dtype)
        moved[name] = value
    return moved


def rows_of(inputs: Mapping[str, Any]) -> int:
    """Number of rows: the length of the first tensor."""
    return next((len(v) for v in inputs.values() if isinstance(v, Tensor) and v.dim()), 1)


@contextmanager
def undisturbed(model: PreTrainedModel, *, portable: bool = True) -> Iterator[None]:
    """Run ``model`` in eval mode, and leave it and the global random state as they were.

    BigBird replaces its attentions at the first short input.

    Args:
        model: the model.
        portable: whether to run without attention kernels, see :func:`portable_attention`.
    """
    before = [(module, dict(module._modules), _plain(module)) for module in model.modules()]
    kind = model.device.type
    devices = [model.device.index or 0] if kind not in ("cpu", "meta", "mps") else []
    model.eval()
    try:
        with (
            torch.random.fork_rng(devices, device_type=kind if devices else "cuda"),
            default_device(model.device),  # trainers run configure_model with another one
            portable_attention(model) if portable else nullcontext(),
        ):
            yield
    finally:
        for module, children, attributes in before:
            module._modules.clear()
            module._modules.update(children)
            vars(module).update(attributes)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: for so few tokens others cost more than they save."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def default_device(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which tensors are made on ``device``.

    None where they are already: torch's context costs several microseconds in every function.
    """
    # In torch 2.7 `get_default_device` does not know the contexts that are entered.
    return nullcontext() if torch.empty(0).device == device else device


def _plain(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are words, numbers and answers, its mode among them."""
    kinds = (str, int, float, bool, type(None))
    return {name: value for name, value in vars(module).items() if isinstance(value, kinds)}


@contextmanager
def portable_attention(model: nn.Module) -> Iterator[None]:
    """Run ``model`` under eager attention where its implementation needs a kernel.

    FlexAttention and flash attention do not run on every device that builds the model, and have no
    gradients on some. SDPA and eager attention do, and stay.
    """
    with INTERFACE:
        entries = [vars(config) for config in configurations(model)]
        before = [(own, own[IMPLEMENTATION]) for own in entries if IMPLEMENTATION in own]
        try:
            for own, name in before:
                own[IMPLEMENTATION] = name if name in ANYWHERE else "eager"
            yield
        finally:
            for own, name in before:
                own[IMPLEMENTATION] = name


def configurations(model: nn.Module) -> list[PreTrainedConfig]:
    """The configurations of all modules of ``model`` and their parts, each once."""
    found: dict[int, PreTrainedConfig] = {}
    waiting = [getattr(module, "config", None) for module in model.modules()]
    while waiting:
        config = waiting.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            waiting += vars(config).values()
    return list(found.values())
