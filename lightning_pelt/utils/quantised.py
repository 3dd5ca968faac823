"""What quantised parameters stand for: numbers of weights, bytes, and the kind of quantisation.

Those of torchao are subclasses of tensors with the shape and the dtype of what they stand for.
Those of bitsandbytes are ordinary tensors of packed integers, with a state beside them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

KINDS = {
    "Int8Tensor": "int8 (torchao)",
    "Float8Tensor": "fp8 (torchao)",
    "NF4Tensor": "nf4 (torchao)",
    "Int8Params": "LLM.int8() (bitsandbytes)",
}
PACKED = (torch.int8, torch.uint8)


def kind_of(tensor: Tensor) -> str | None:
    """Name of the quantisation of a parameter, such as ``int8 (torchao)``; None for ordinary ones.

    Example:
        >>> kind_of(torch.nn.Parameter(torch.zeros(2))) is None
        True
    """
    name = type(tensor).__name__
    if name == "Params4bit":
        return f"{getattr(tensor, 'quant_type', '4 bits')} (bitsandbytes)"
    if name in KINDS:
        return KINDS[name]
    if type(tensor).__module__.split(".")[0] == "torchao":
        return f"{name} (torchao)"
    if isinstance(tensor, torch.nn.Parameter) and tensor.dtype in PACKED:
        return str(tensor.dtype).removeprefix("torch.")
    return None


def kinds_of(tensors: Iterable[Tensor]) -> list[str]:
    """The kinds of quantisation among ``tensors``, sorted."""
    return sorted({kind for tensor in tensors if (kind := kind_of(tensor)) is not None})


def count(tensor: Tensor) -> int:
    """Number of the weights that a parameter stands for: more than it has elements, if packed.

    Example:
        >>> count(torch.zeros(2, 3))
        6
    """
    shape = getattr(getattr(tensor, "quant_state", None), "shape", None)
    return tensor.numel() if shape is None else torch.Size(shape).numel()


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, with the scales of a quantised one.

    Example:
        >>> stored_bytes(torch.zeros(2, 3, dtype=torch.bfloat16))
        12
    """
    total = 0
    pending: list[Any] = [tensor]
    while pending:
        each = pending.pop()
        if isinstance(each, Tensor) and kind_of(each) is not None and _inner(each):
            pending += _inner(each)
        elif isinstance(each, Tensor):
            total += each.numel() * each.element_size()
            pending.append(getattr(each, "quant_state", None))
        elif each is not None:  # of bitsandbytes, which may quantise its scales too
            pending += [getattr(each, n, None) for n in ("absmax", "code", "offset", "state2")]
    return total


def dense_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor would take if it were not quantised.

    Example:
        >>> dense_bytes(torch.zeros(2, 3))
        24
    """
    dtype = getattr(getattr(tensor, "quant_state", None), "dtype", None)
    return count(tensor) * (tensor.dtype if dtype is None else dtype).itemsize


def _inner(tensor: Tensor) -> list[Tensor]:
    """The tensors that a subclass holds."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return []
    names, _ = tensor.__tensor_flatten__()
    found = (getattr(tensor, name) for name in names)
    return [inner for inner in found if isinstance(inner, Tensor)]
