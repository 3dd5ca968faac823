"""What a recorded tensor was computed from.

The recording cuts the graph behind every linear layer, so that a gradient ends at the nearest ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_pelt.anatomy.calls import Call

# Products of two matrices by the names under which autograd keeps them.
PRODUCTS = {
    "BmmBackward0": ("_saved_self", "_saved_mat2"),
    "BaddbmmBackward0": ("_saved_batch1", "_saved_batch2"),
    "MmBackward0": ("_saved_self", "_saved_mat2"),
}
NEAR = 64  # nodes between a softmax and the products that it reads


def read_by(call: Call) -> Tensor:
    """The tensor that a module reads first."""
    return next(iter(call.inputs.values()))


def gradients(tensor: Tensor, outputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradient of a random projection of ``tensor`` for each of ``outputs``.

    None where nothing leads there, or nothing but other linear layers.
    """
    known = [output for output in outputs if output is not None and output.requires_grad]
    if not tensor.requires_grad or not known:
        return [None] * len(outputs)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor)
    found = torch.autograd.grad((tensor * noise).sum(), known, retain_graph=True, allow_unused=True)
    by_output = dict(zip(map(id, known), found, strict=True))
    return [by_output.get(id(output)) for output in outputs]


def nearest(tensor: Tensor, calls: Sequence[Call]) -> dict[Call, Tensor]:
    """Those of ``calls`` from which ``tensor`` is computed without another linear layer between.

    With the gradient for the output of each.
    """
    found = gradients(tensor, [call.output for call in calls])
    pairs = zip(calls, found, strict=True)
    return {call: gradient for call, gradient in pairs if gradient is not None and gradient.any()}


def is_position_wise(tensor: Tensor, origin: Tensor) -> bool:
    """Whether each position of ``tensor`` depends on the same position of ``origin`` alone.

    Positions are all dimensions but the last: (B, T), (B, H, W), or rows of tokens.
    """
    rows, count = tensor.flatten(0, -2), origin[..., 0].numel()
    if len(rows) != count:
        return False
    chosen = count // 2
    (gradient,) = torch.autograd.grad(
        rows[chosen].square().sum() + rows[chosen].sum(), origin, retain_graph=True
    )
    others = gradient.flatten(0, -2).any(-1)
    others[chosen] = False
    return not bool(others.any())


def products(tensor: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The factors of the matrix products near ``tensor`` whose factors were both computed."""
    found = []
    for node in _nodes_before(tensor, NEAR):
        saved = [getattr(node, name) for name in PRODUCTS.get(node.name(), ())]
        if saved and all(factor is not None and factor.requires_grad for factor in saved):
            found.append((saved[0], saved[1]))
    return found


def _nodes_before(tensor: Tensor, limit: int) -> Iterator[Any]:
    """The nodes of the graph of ``tensor``, the nearest first; not those before a product."""
    queue, seen = deque([tensor.grad_fn]), {tensor.grad_fn}
    while queue and len(seen) <= limit:
        node = queue.popleft()
        if node is None:
            continue
        yield node
        for before, _ in node.next_functions if node.name() not in PRODUCTS else ():
            if before not in seen:
                seen.add(before)
                queue.append(before)
