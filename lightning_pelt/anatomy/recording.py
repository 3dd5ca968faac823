"""One dummy forward, written down: which module ran when, on which tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface, PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass
class Call:
    """One call of a module: its tensor arguments, its (first) output tensor, its place in time."""

    module: nn.Module
    inputs: dict[int | str, Tensor]
    output: Tensor | None = None


@dataclass
class AttentionCall:
    """One call of the attention function; ``at`` is its place among the module calls."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    at: int


@dataclass
class Recording:
    calls: list[Call]
    attention: list[AttentionCall]


def is_linear(module: nn.Module) -> bool:
    """Anything that acts like a linear layer, quantised ones and GPT-2's ``Conv1D`` included."""
    if isinstance(module, Conv1D):
        return True
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def widths(linear: nn.Module) -> tuple[int, int]:
    """(d_in, d_out) of a linear-like module."""
    if isinstance(linear, Conv1D):
        return linear.weight.shape[0], linear.weight.shape[1]
    return int(linear.in_features), int(linear.out_features)  # type: ignore[arg-type]


def first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def dummy_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """The smallest inputs that run ``model``: five tokens, one image, or a second of sound."""
    accepted = inspect.signature(model.forward).parameters
    device, dtype = model.device, model.dtype
    generator = torch.Generator().manual_seed(0)
    config = model.config
    vision = getattr(config, "vision_config", config)
    inputs: dict[str, Tensor] = {}
    if "pixel_values" in accepted:
        size = vision.image_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        image = (1, getattr(vision, "num_channels", 3), height, width)
        inputs["pixel_values"] = torch.randn(image, generator=generator, device="cpu")
    if "input_features" in accepted:
        shape = (1, config.num_mel_bins, 2 * config.max_source_positions)
        inputs["input_features"] = torch.randn(shape, generator=generator, device="cpu")
    if "input_values" in accepted:
        inputs["input_values"] = torch.randn((1, 4000), generator=generator, device="cpu")
    inputs = {name: tensor.to(device, dtype) for name, tensor in inputs.items()}
    tokens = torch.arange(3, 8, device=device)[None]
    if "input_ids" in accepted or not inputs:
        inputs["input_ids"] = tokens
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = tokens[:, :4].contiguous()
    return inputs


@contextmanager
def _attention_seen(note: Callable[..., None]) -> Iterator[None]:
    """Tell ``note`` of every call that goes through transformers' attention interface."""
    original = AttentionInterface.get_interface

    def get_interface(self: AttentionInterface, name: str, default: Callable) -> Callable:
        function = original(self, name, default)

        def noted(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *a: Any, **k: Any):  # type: ignore[no-untyped-def]
            note(module, query, key, value)
            return function(module, query, key, value, *a, **k)

        return noted

    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        AttentionInterface.get_interface = original  # type: ignore[method-assign]


def base_of(model: PreTrainedModel) -> Any:
    """``model`` without its head; itself where its so-called base is but the stack of blocks."""
    base = model.base_model
    accepted = inspect.signature(base.forward).parameters
    return base if getattr(base, "main_input_name", None) in accepted else model


def record(model: PreTrainedModel) -> Recording:
    """Run ``model``'s base once on dummy inputs, without dropout, and write everything down.

    The global random state, the mode and the gradients of the model stay as they were.

    Raises:
        ValueError: the model does not run on the dummy inputs.
    """
    base = base_of(model)
    seen = Recording([], [])
    stack: list[Call] = []

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        tensors = {k: v for k, v in (*enumerate(args), *kwargs.items()) if isinstance(v, Tensor)}
        call = Call(module, tensors)
        seen.calls.append(call)
        stack.append(call)

    anchor = torch.zeros((), device=base.device, requires_grad=True)

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        call = stack.pop()
        if is_linear(module) and isinstance(output, Tensor) and not output.requires_grad:
            # Not requires_grad_(): a leaf could not be changed in place, as DeBERTa does.
            output = output + anchor.to(output.dtype)
        call.output = first_tensor(output)
        return output

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> None:
        seen.attention.append(AttentionCall(module, query, key, value, len(seen.calls)))

    modes = {module: module.training for module in base.modules()}
    handles = []
    for module in base.modules():
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    base.eval()
    try:
        # Trainers run configure_model with a device of their own as the default.
        with torch.enable_grad(), torch.device(base.device), _attention_seen(attend):
            base(**dummy_inputs(base))
    except Exception as error:
        raise ValueError(
            f"{type(base).__name__} cannot be examined: it failed on a dummy input with "
            f"{type(error).__name__}: {error}. Attach to the transformer inside it, by its path."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return seen
