"""Residuals: the tensor that a block adds to the output of each of its sublayers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_pelt.anatomy._norms import dropout_after
from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy.calls import Call
from lightning_pelt.anatomy.sites import Residual, Source


def find_residuals(
    recorded: RecordedModel, block: str, outputs: Sequence[Call]
) -> list[Residual | None]:
    """The residual of each sublayer of a block; None where the block does not add ``f`` itself.

    It is a tensor ``a`` that a module of the block reads, and ``f + a`` is the block's output or
    read by a module of the block. For parallel residuals, as in GPT-NeoX, the sum holds the outputs
    of all sublayers.

    Args:
        recorded: the model.
        block: path of the block.
        outputs: the calls that return the outputs ``f`` of all sublayers of the block.
    """
    inside = recorded.called(block)
    whole = recorded.first.get(recorded.at(block))
    ends = [] if whole is None or whole.output is None else [whole.output]
    seen = {id(tensor): tensor for call in inside for tensor in call.inputs.values()}
    sums = _Tensors(t.detach() for t in (*ends, *seen.values()) if t.is_floating_point())
    parts = [call.output for call in outputs if call.output is not None]
    found: list[Residual | None] = []
    for output in outputs:
        read = list(_read_before(recorded, block, inside, output))
        sources = [s for a, s in read if _occurs(sums, a, [output.output])]
        sources += [s for a, s in read if len(parts) > 1 and _occurs(sums, a, parts)]
        path = recorded.names[dropout_after(recorded, block, output) or output.module]
        found.append(Residual(path, sources[0]) if sources else None)
    return found


def _read_before(
    recorded: RecordedModel, block: str, inside: Sequence[Call], output: Call
) -> Iterator[tuple[Tensor, Source]]:
    """The tensors of the shape of ``f`` that modules of the block read before it, and where."""
    shape = None if output.output is None else output.output.shape
    for call in inside:
        path = recorded.names[call.module]
        if call is output:
            return
        if path == block or recorded.repeats(call.module, block):
            continue
        for argument, tensor in call.inputs.items():
            if tensor.is_floating_point() and tensor.shape == shape:
                yield tensor, Source(path, argument, tensor.shape[-1])


class _Tensors:
    """Tensors among which others are looked up by their values.

    Most are told apart by their first values alone, which costs no pass over the tensors.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.known = [(tensor, _first_values(tensor)) for tensor in tensors]
        self._read: dict[int, tuple[Tensor, list[float]]] = {}  # by the id of the tensor

    def may_hold(self, terms: Sequence[Tensor]) -> bool:
        """Whether the first values of the sum of ``terms`` may be those of one of the tensors.

        They are added as numbers, which takes a hundredth of the time of a sum of tensors.
        """
        read = [self._first_values(term) for term in terms]
        error = 4 * max(torch.finfo(term.dtype).eps for term in terms)
        sums = [(sum(each), error * sum(map(abs, each))) for each in zip(*read, strict=False)]
        return any(_may_be(sums, values) for _, values in self.known)

    def _first_values(self, tensor: Tensor) -> list[float]:
        if id(tensor) not in self._read:
            self._read[id(tensor)] = tensor, _first_values(tensor)
        return self._read[id(tensor)][1]

    def hold(self, wanted: Tensor) -> bool:
        """Whether a tensor with the values of ``wanted``, in any shape, is among them."""
        first = _first_values(wanted)
        return any(
            tensor.numel() == wanted.numel()
            and _close(first, values)
            and torch.allclose(tensor.reshape(wanted.shape), wanted, atol=1e-6)
            for tensor, values in self.known
        )


def _may_be(sums: Sequence[tuple[float, float]], values: Sequence[float]) -> bool:
    """Whether ``values`` are the sums, each with its rounding error, or close to them."""
    for (total, error), value in zip(sums, values, strict=False):
        if not abs(total - value) <= 2e-5 + error + 2e-4 * abs(value):
            return False
    return True


def _close(first: Sequence[float], second: Sequence[float]) -> bool:
    pairs = zip(first, second, strict=True)  # of tensors with as many elements
    return all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-5) for a, b in pairs)


def _first_values(tensor: Tensor) -> list[float]:
    return tensor.reshape(-1)[:3].tolist()


def _occurs(sums: _Tensors, residual: Tensor, parts: Sequence[Tensor | None]) -> bool:
    """Whether ``residual`` plus all ``parts`` is among ``sums``."""
    if not sums.may_hold([residual, *(part for part in parts if part is not None)]):
        return False
    total = residual.detach()
    for part in parts:
        if part is None or part.numel() != total.numel():
            return False
        total = total + part.detach().reshape(total.shape)
    return sums.hold(total)
