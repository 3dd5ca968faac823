"""What a recording holds: the calls of modules and of attention functions, with their tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        module: the module.
        inputs: its tensor arguments, by position or name.
        output: its output, or the first of several, if that is a tensor.
        keywords: names of all arguments given by name.
        linear: whether it acted as a linear layer, (..., d_in) -> (..., d_out).
    """

    module: nn.Module
    inputs: dict[int | str, Tensor]
    output: Tensor | None = None
    keywords: frozenset[str] = frozenset()
    linear: bool = False


@dataclass(eq=False)
class AttentionCall:
    """One attention, on transformers' attention interface or off it.

    Attributes:
        module: the attention module.
        index: number of module calls before it.
        on_interface: whether it is on the interface.
        operands: pairs of query and key, (..., Q, d) and (..., K, d) or transposed. Off the
            interface there may be several, since scores may have further terms.
        value: (..., K, d); None off the interface, except of a fused function.
        mark: a zero that was added to the attention's weights or result: what depends on it,
            depends on the attention. None if it was not seen to run.
        seen: (Q, K), whether a query sees a key in any row and head; None if this is unknown.
    """

    module: nn.Module
    index: int
    on_interface: bool
    operands: list[tuple[Tensor, Tensor]]
    value: Tensor | None = None
    mark: Tensor | None = None
    seen: Tensor | None = None


@dataclass
class Recording:
    """The calls of one forward, in the order in which they start.

    Attributes:
        batch: number of rows of the inputs.
        words: numbers of tokens in the rows of those inputs that are integers.
        outputs: the floating-point tensors that the model returns.
        at_once: whether no other inputs were tried before.
    """

    batch: int = 1
    words: frozenset[int] = frozenset()
    calls: list[Call] = field(default_factory=list)
    attention_calls: list[AttentionCall] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    at_once: bool = True


def is_linear(module: nn.Module) -> bool:
    """Whether a module acts as a linear layer: also quantised ones and GPT-2's ``Conv1D``."""
    if isinstance(module, Conv1D):
        return True
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def acts_as_linear(call: Call, output: Any) -> bool:
    """Whether a call that returned ``output`` is of a linear layer.

    Those of I-BERT return a scaling factor too, which is None in floating point. Others have a
    linear layer's attributes and are none: DeepSeek-V4's are block-diagonal.
    """
    if isinstance(output, tuple) and output[1:] == (None,):
        output = output[0]
    if not is_linear(call.module) or not isinstance(output, Tensor) or not call.inputs:
        return False
    d_in, d_out = widths(call.module)
    read = next(iter(call.inputs.values())).shape
    return read[-1:] == (d_in,) and output.shape == (*read[:-1], d_out)


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


def main_outputs(output: Any) -> list[Tensor]:
    """The floating-point tensors that a model returns itself, or else all.

    LLaVA returns the outputs of its vision tower as well, of which it reads some.
    """
    values = list(output.values()) if isinstance(output, dict) else [output]
    own = [value for value in values if not isinstance(value, dict)]
    return float_tensors(own) or float_tensors(output)


def float_tensors(output: Any) -> list[Tensor]:
    """All floating-point tensors in tuples, lists and dictionaries; not those of a cache."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        return [tensor for item in output for tensor in float_tensors(item)]
    return []
