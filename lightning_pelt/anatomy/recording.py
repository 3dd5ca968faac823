"""Recording: one dummy forward, with the tensors of every module and attention call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface, PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass
class Call:
    """One call of a module: its tensor arguments, and its (first) output tensor."""

    module: nn.Module
    inputs: dict[int | str, Tensor]
    output: Tensor | None = None


@dataclass
class AttentionCall:
    """One call of the attention function; ``index`` is the number of module calls before it."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    index: int


@dataclass
class Recording:
    """The calls of one forward, in the order in which they start."""

    calls: list[Call] = field(default_factory=list)
    attention_calls: list[AttentionCall] = field(default_factory=list)


def is_linear(module: nn.Module) -> bool:
    """Whether a module acts as a linear layer: also quantised ones and GPT-2's ``Conv1D``."""
    if isinstance(module, Conv1D):
        return True
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def widths(linear: nn.Module) -> tuple[int, int]:
    """(d_in, d_out) of a module for which :func:`is_linear` holds."""
    if isinstance(linear, Conv1D):
        return linear.weight.shape[0], linear.weight.shape[1]
    return int(linear.in_features), int(linear.out_features)  # type: ignore[arg-type]


def first_tensor(output: Any) -> Tensor | None:
    """``output``, or its first element, if that is a tensor."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def base_of(model: PreTrainedModel) -> Any:
    """``model`` without its head.

    Where ``model.base_model`` holds only the blocks, without the embeddings, it is ``model``.

    Example:
        >>> from lightning_pelt.testing import tiny_bert
        >>> type(base_of(tiny_bert())).__name__
        'BertModel'
    """
    base = model.base_model
    accepted = inspect.signature(base.forward).parameters
    return base if getattr(base, "main_input_name", None) in accepted else model


def dummy_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """The smallest inputs that run ``model``: five tokens, an image, or a quarter second of sound.

    The values are drawn from a fixed seed.
    """
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


def record(model: PreTrainedModel) -> Recording:
    """Run ``model``'s base once on dummy inputs, without dropout, and record every call.

    The global random state and the model's mode and gradients do not change.

    Raises:
        ValueError: the model does not run on the dummy inputs.
    """
    base = base_of(model)
    recorder = _Recorder(base.device)
    modes = {module: module.training for module in base.modules()}
    handles = []
    for module in base.modules():
        handles.append(module.register_forward_pre_hook(recorder.start, with_kwargs=True))
        handles.append(module.register_forward_hook(recorder.end, with_kwargs=True))
    base.eval()
    try:
        # Trainers run configure_model with another default device.
        with (
            torch.enable_grad(),
            torch.device(base.device),
            _attention_interface_calls(recorder.attention),
        ):
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
    return recorder.recording


class _Recorder:
    """Forward hooks that append each call to a recording."""

    def __init__(self, device: torch.device) -> None:
        self.recording = Recording()
        self._running: list[Call] = []
        self._zero = torch.zeros((), device=device, requires_grad=True)

    def start(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before a module's forward."""
        tensors = {k: v for k, v in (*enumerate(args), *kwargs.items()) if isinstance(v, Tensor)}
        call = Call(module, tensors)
        self.recording.calls.append(call)
        self._running.append(call)

    def end(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """After it. The output of a frozen linear layer becomes part of a graph."""
        call = self._running.pop()
        if is_linear(module) and isinstance(output, Tensor) and not output.requires_grad:
            # Not requires_grad_(): DeBERTa changes the output in place, which a leaf forbids.
            output = output + self._zero.to(output.dtype)
        call.output = first_tensor(output)
        return output

    def attention(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Before the attention function of ``module``."""
        calls, index = self.recording.attention_calls, len(self.recording.calls)
        calls.append(AttentionCall(module, query, key, value, index))


@contextmanager
def _attention_interface_calls(callback: Callable[..., None]) -> Iterator[None]:
    """Call ``callback`` before each attention function of transformers' attention interface."""
    original = AttentionInterface.get_interface

    def get_interface(self: AttentionInterface, name: str, default: Callable) -> Callable:
        function = original(self, name, default)

        def observed(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
        ) -> Any:
            callback(module, query, key, value)
            return function(module, query, key, value, *args, **kwargs)

        return observed

    AttentionInterface.get_interface = get_interface  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        AttentionInterface.get_interface = original  # type: ignore[method-assign]
