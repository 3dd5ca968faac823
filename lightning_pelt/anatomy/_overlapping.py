"""Matrices of any size in little memory: overlapping views of a row of random numbers.

A product with such a view is that with a matrix of low rank, and costs as much. What computes with
a view in other ways reads its elements.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ROOM = 1 << 16  # places at which views begin
STEPS = (1, 3, 5, 7, 11, 13, 17, 19)  # between neighbours in a dimension, the last one first
RANK = 4
DEVIATION = 0.02  # of the elements, as in freshly initialised models


def rows_for(matrices: Collection[Tensor]) -> dict[torch.dtype, Tensor]:
    """A row of random numbers for each dtype, long enough for all views and factors."""
    rows = {}
    for dtype in {tensor.dtype for tensor in matrices}:
        shapes = [t.shape for t in matrices if t.dtype == dtype]
        length = max(max(_extent(shape), RANK * max(shape)) for shape in shapes)
        draw = torch.Generator().manual_seed(0)
        row = torch.randn(ROOM + length, generator=draw, device="cpu")
        rows[dtype] = (row * DEVIATION).to(dtype)
    return rows


def _extent(shape: torch.Size) -> int:
    return 1 + sum((size - 1) * step for size, step in zip(reversed(shape), STEPS, strict=False))


def overlapping(tensor: Tensor, row: Tensor, number: int) -> Tensor:
    """The ``number``-th view of ``row``, of the shape of ``tensor``."""
    return row.as_strided(tensor.shape, STEPS[: tensor.dim()][::-1], 127 * number % ROOM)


class Products(TorchFunctionMode):
    """Multiplies with views of ``rows`` as with matrices of low rank.

    Two calls with one view multiply by the same matrix, and two views are two matrices.
    """

    def __init__(self, rows: Mapping[torch.dtype, Tensor]) -> None:
        super().__init__()
        self.memory = {row.untyped_storage().data_ptr() for row in rows.values()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        product = PRODUCTS.get(func)
        found = None if product is None else product(self._multiply, *args, **kwargs)
        return func(*args, **kwargs) if found is None else found

    def _multiply(self, x: Any, weight: Any) -> Tensor | None:
        """x (..., d_in), weight (..., d_in, d_out) -> (..., d_out); None if it is no stand-in."""
        if not isinstance(weight, Tensor) or weight.dim() < 2 or x.dim() < 2 or weight.is_meta:
            return None
        if weight.untyped_storage().data_ptr() not in self.memory or x.dim() < weight.dim():
            return None
        (d_in, d_out), start = weight.shape[-2:], weight.storage_offset() % ROOM
        row = weight.detach()
        left = row.as_strided((d_in, RANK), (RANK, 1), start)
        right = row.as_strided((RANK, d_out), (d_out, 1), start)
        return (x @ left) / (DEVIATION**2 * (d_in * RANK) ** 0.5) @ right


Multiply = Callable[[Any, Any], Tensor | None]


def _plain(multiply: Multiply, x: Any, weight: Any) -> Tensor | None:
    return multiply(x, weight)


def _linear(multiply: Multiply, input: Any, weight: Any, bias: Any = None) -> Tensor | None:
    # Quantised weights have no transpose, and are no stand-ins.
    ordinary = type(weight) in (Tensor, nn.Parameter) and weight.dim() > 1
    found = multiply(input, weight.mT) if ordinary else None
    return found if bias is None or found is None else found + bias


def _added(multiply: Multiply, bias: Any, x: Any, weight: Any, **scales: Any) -> Tensor | None:
    found = None if scales else multiply(x, weight)
    return None if found is None else bias + found


def _grouped(multiply: Multiply, x: Any, weight: Any, **_offsets: Any) -> Tensor | None:
    return multiply(x, weight[0])


GROUPED = [
    getattr(owner, name, None) for owner, name in ((F, "grouped_mm"), (torch, "_grouped_mm"))
]
PRODUCTS: dict[Any, Callable[..., Tensor | None]] = {
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), _plain),
    **dict.fromkeys((torch.bmm, Tensor.bmm), _plain),
    **dict.fromkeys((torch.addmm, torch.baddbmm), _added),
    **{function: _grouped for function in GROUPED if function is not None},
}
