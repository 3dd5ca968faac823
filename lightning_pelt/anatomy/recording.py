"""Recording: one dummy forward, with the tensors of every module and attention call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_pelt.anatomy.dummy_inputs import base_of, dummy_inputs, on, rows_of, undisturbed

INTERFACE = threading.RLock()  # held while AttentionInterface.get_interface is replaced


@dataclass
class Call:
    """One call of a module: its tensor arguments, its (first) output tensor, all keywords."""

    module: nn.Module
    inputs: dict[int | str, Tensor]
    output: Tensor | None = None
    keywords: frozenset[str] = frozenset()


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
    """The calls of one forward, in the order in which they start.

    Attributes:
        batch: number of rows of the inputs.
        words: numbers of tokens in the rows of those inputs that are integers.
    """

    batch: int = 1
    words: frozenset[int] = frozenset()
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


def record(model: PreTrainedModel, inputs: dict[str, Tensor] | None = None) -> Recording:
    """Run ``model``'s base once without dropout, and record every call.

    Args:
        model: is left as it was, as are the global random state and all gradients.
        inputs: keyword arguments of ``model``; None for the smallest ones of its base.

    Raises:
        ValueError: the model does not run on the inputs.
    """
    base = base_of(model)
    runner, given = (base, dummy_inputs(base)) if inputs is None else (model, on(model, inputs))
    recorder = _Recorder(base.device)
    handles = []
    for module in base.modules():
        handles.append(module.register_forward_pre_hook(recorder.start, with_kwargs=True))
        handles.append(module.register_forward_hook(recorder.end, with_kwargs=True))
    try:
        with torch.enable_grad(), undisturbed(model), _attention_calls(recorder.attention):
            before = dict(base.named_modules())
            runner(**given)
            _refuse_replaced(base, before)
    except Exception as error:
        kind = "a dummy input" if inputs is None else "the example inputs"
        remedy = "Give it inputs that it runs on, attach(..., example_inputs={...}), or attach"
        raise ValueError(
            f"{type(runner).__name__} cannot be examined: it failed on {kind} with "
            f"{type(error).__name__}: {error}. {remedy} to the transformer inside it, by its path."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    recorder.recording.batch = rows_of(given)
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    recorder.recording.words = frozenset(
        value.shape[1] for value in tensors if value.dim() == 2 and not value.is_floating_point()
    )
    return recorder.recording


def _refuse_replaced(base: nn.Module, before: dict[str, nn.Module]) -> None:
    now = dict(base.named_modules())
    path = next((path for path in before if now.get(path) is not before[path]), None)
    if path is not None:
        raise RuntimeError(
            f"a forward replaces {path} and all that is attached there (BigBird does so at "
            "short inputs unless attention_type='original_full')"
        )


class _Recorder:
    """Forward hooks that append each call to a recording."""

    def __init__(self, device: torch.device) -> None:
        self.recording = Recording()
        self._running: list[Call] = []
        self._zero = torch.zeros((), device=device, requires_grad=True)

    def start(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before a module's forward."""
        tensors = {k: v for k, v in (*enumerate(args), *kwargs.items()) if isinstance(v, Tensor)}
        call = Call(module, tensors, keywords=frozenset(kwargs))
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
def _attention_calls(callback: Callable[..., None]) -> Iterator[None]:
    """Call ``callback`` before each attention function of transformers' attention interface."""
    with INTERFACE:
        yield from _observed(callback)


def _observed(callback: Callable[..., None]) -> Iterator[None]:
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
