"""The feed-forward of a block: its position-wise network, dense or a mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy._graph import is_position_wise, nearest, read_by
from lightning_pelt.anatomy._mixtures import find_mixtures, modules_of, parameters_of
from lightning_pelt.anatomy._projections import Attention
from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy.calls import Call, widths


@dataclass(frozen=True, eq=False)
class FeedForward:
    """The feed-forward of a block.

    Attributes:
        output: the call that returns its output.
        inputs: calls of its first linear layers, one or, with a gate, two; none of a mixture.
        last: call of its last linear layer; None of a mixture.
        number: of its first call.
    """

    output: Call
    inputs: tuple[Call, ...]
    last: Call | None
    number: int


def find_feed_forward(
    recorded: RecordedModel, path: str, attentions: Sequence[Attention], width: int
) -> FeedForward | None:
    """The feed-forward of the block at ``path``; None if it has none.

    Of several the largest one counts, and those behind the attentions count before others: a block
    may have adapters (X-MOD), projections of other inputs (Gemma 3n), or a second feed-forward in
    front (Conformers). Of equal ones that follow each other the last counts (MobileBERT), and none
    of those that do not (LXMERT has one for words and one for images; that of Higgs Audio for
    sounds may not run). A pair of linear layers with a convolution in between (SegFormer) counts
    if nothing else does.

    Args:
        recorded: the model.
        path: of the block.
        attentions: of the block.
        width: of the residual stream.
    """
    own = {module for attention in attentions for module in attention.module.modules()}
    mixtures = find_mixtures(recorded, path, own, width)
    hidden = own | set(modules_of(mixtures))
    outputs = [a.output for a in attentions if a.output is not None]
    linear = [c for c in recorded.called(path) if c.linear]
    free = [c for c in linear if c.module not in hidden and c not in outputs]
    after = max((attention.call.index for attention in attentions), default=0)
    found = [FeedForward(call, (), None, recorded.order[call.module]) for call in mixtures]
    mixing: list[FeedForward] = []
    for call in free:
        if widths(call.module)[1] != width or not call.inputs:
            continue
        read = read_by(call)
        near = nearest(read, linear)
        inputs = tuple(c for c in near if c in free and widths(c.module)[0] == width)
        if not inputs or any(c in outputs for c in near):  # it reads the residual stream
            continue
        whole = _whole(recorded, path, call, own)
        pair = FeedForward(whole, inputs, call, recorded.order[inputs[0].module])
        (found if all(_is_position_wise(read, c) for c in inputs) else mixing).append(pair)
    candidates = found or (mixing if attentions else [])
    ranks = [(each.number >= after, _size(each)) for each in candidates]
    best = [each for each, rank in zip(candidates, ranks, strict=True) if rank == max(ranks)]
    last = max(best, key=lambda each: each.number, default=None)
    follows = all(each is last or _follows(recorded, last, each) for each in best)
    return last if follows and not (last and _has_idle_twin(recorded, path, last)) else None


def _has_idle_twin(recorded: RecordedModel, path: str, each: FeedForward) -> bool:
    """Whether a module of the same class stands beside that of a feed-forward, and does not run."""
    inner = recorded.names[(each.last or each.output).module]
    owner = inner.rpartition(".")[0] if each.last else inner
    if not owner.startswith(f"{path}."):
        return False
    own = recorded.at(owner)
    beside = recorded.at(owner.rpartition(".")[0]).children()
    twins = [recorded.first.get(m) for m in beside if type(m) is type(own) and m is not own]
    return any(call is None or not call.inputs or not read_by(call).numel() for call in twins)


def _follows(recorded: RecordedModel, last: FeedForward | None, earlier: FeedForward) -> bool:
    """Whether ``last`` reads what was computed from the output of ``earlier``."""
    first = last.inputs[0] if last and last.inputs else last.output if last else None
    output = earlier.output.output
    if first is None or output is None:
        return False
    return output.grad_fn in recorded.ancestry.nodes([read_by(first)])


def _whole(recorded: RecordedModel, path: str, last: Call, without: Set[nn.Module]) -> Call:
    """The call that returns the feed-forward's output, if its last linear layer is not all of it.

    Beside it there may be experts (Doge). A module with a norm, or one that adds what it is given
    (Bloom), is a sublayer.
    """
    whole, outer = last, recorded.names[last.module].rpartition(".")[0]
    while outer.startswith(f"{path}."):
        modules = list(recorded.at(outer).modules())
        call = recorded.first.get(modules[0])
        if call is None or any("Norm" in type(m).__name__ or m in without for m in modules):
            break
        if any(_is_sum(call.output, last.output, tensor) for tensor in call.inputs.values()):
            break
        if not _is_same(call.output, whole.output):
            whole = call
        outer = outer.rpartition(".")[0]
    return whole


def _is_same(output: Tensor | None, other: Tensor | None) -> bool:
    """Whether the output of a module is that of the one inside it, or no sequence of its shape."""
    if output is None or other is None or not _is_same_shape(output, other):
        return True
    return torch.equal(output, other)


def _is_sum(output: Tensor | None, part: Tensor | None, residual: Tensor) -> bool:
    if output is None or part is None or not output.shape == part.shape == residual.shape:
        return False
    return torch.allclose(output, part + residual, atol=1e-6)


def _is_same_shape(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and tensor.shape == other.shape


def _is_position_wise(read: Tensor, call: Call) -> bool:
    return call.output is not None and is_position_wise(read, call.output)


def _size(feed_forward: FeedForward) -> int:
    last = feed_forward.last or feed_forward.output
    return parameters_of((*feed_forward.inputs, last))


def width_of(recorded: RecordedModel, path: str) -> int | None:
    """Width of what the block at ``path`` returns; None if it does not run."""
    call = recorded.first.get(recorded.at(path))
    output = None if call is None else call.output
    return None if output is None or output.dim() < 2 else output.shape[-1]


def has_feed_forward(recorded: RecordedModel, path: str) -> bool:
    """Whether the element at ``path``, in which no attention is known, has a feed-forward."""
    width = width_of(recorded, path)
    return width is not None and find_feed_forward(recorded, path, [], width) is not None
