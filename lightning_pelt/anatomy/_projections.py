"""Attention projections: which linear layers compute queries, keys and values, and read the result.

They follow from the flow of data, not from names: the gradient of the queries for a linear layer's
output is non-zero exactly where that layer computes the queries, and in exactly those channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from lightning_pelt.anatomy._graph import gradients, nearest, products, read_by
from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy.calls import AttentionCall, Call, widths
from lightning_pelt.anatomy.sites import AttentionHeads

Channels = tuple[int, ...]


class Projection(NamedTuple):
    """A linear layer that computes queries, keys or values.

    Attributes:
        call: of the layer.
        channels: the output channels that it fills; None is all of them.
    """

    call: Call
    channels: Channels | None


@dataclass(frozen=True, eq=False)
class Attention:
    """An attention module and its linear layers.

    Attributes:
        call: of the attention.
        projections: by ``query``, ``key`` and ``value``.
        output: the call of the output projection.
    """

    call: AttentionCall
    projections: dict[str, Projection]
    output: Call | None

    @property
    def module(self) -> nn.Module:
        """The attention module."""
        return self.call.module

    @property
    def heads(self) -> AttentionHeads | None:
        """The heads of keys and values; None off transformers' attention interface."""
        value, (_, key) = self.call.value, self.call.operands[0]
        if value is None or not self.call.on_interface or self._is_over_channels(key):
            return None
        return AttentionHeads(key.shape[1], key.shape[3], value.shape[3])

    def _is_over_channels(self, key: Tensor) -> bool:
        """Whether it compares channels, whose width is the number of tokens (Florence-2)."""
        output = self.projections["key"].call.output if "key" in self.projections else None
        tokens = 0 if output is None or output.dim() < 2 else output.shape[-2]
        return key.shape[3] == tokens != key.shape[2]


def find_attentions(recorded: RecordedModel) -> list[Attention]:
    """Every attention module of a list once, in the order of the first calls.

    A module may attend more than once: to the words and to the layout of a page (LiLT). The one
    counts that is of what the module reads first.
    """
    calls: dict[nn.Module, list[AttentionCall]] = {}
    for call in recorded.attention_calls:
        if call.module in recorded.elements:
            calls.setdefault(call.module, []).append(call)
    found = []
    for listed in calls.values():
        attentions = [_attention(recorded, call) for call in listed]
        found.append(max(attentions, key=lambda each: _rank(recorded, each)))
    return [attention for attention in found if _is_known(attention)]


def _is_known(attention: Attention) -> bool:
    """Whether linear layers project what it compares; off the interface, both.

    Other products with a softmax mix the streams of a block (DeepSeek-V4), or are of parameters.
    """
    if attention.call.on_interface:
        return bool(attention.projections)
    return {"query", "key"} <= attention.projections.keys()


def _rank(recorded: RecordedModel, attention: Attention) -> tuple[int, bool, int]:
    """How many projections are known, and how many read what the module reads first: queries do."""
    first = _Main(recorded, attention.call).first
    read = {role: read_by(each.call) for role, each in attention.projections.items()}
    return len(read), read.get("query") is first, sum(tensor is first for tensor in read.values())


class _Main:
    """What an attention is about: what its module reads first, computed from what the block reads.

    Attributes:
        first: the first tensor that the module reads.
    """

    def __init__(self, recorded: RecordedModel, call: AttentionCall) -> None:
        self.recorded = recorded
        self.first = next(iter(recorded.first[call.module].inputs.values()), None)
        block = recorded.at(recorded.elements[call.module][-1])
        around = recorded.first.get(block)
        self.hidden = [] if around is None else list(around.inputs.values())[:1]

    def closeness(self, linear: Call) -> tuple[bool, bool, bool, int]:
        """Whether a layer runs once, reads the first tensor, what is of the block's; its depth."""
        read = read_by(linear)
        inside = self.recorded.ancestry.first_of(read, self.hidden) is not None
        depth = self.recorded.names[linear.module].count(".")
        return self.recorded.runs_once(linear.module), read is self.first, inside, -depth


def _attention(recorded: RecordedModel, call: AttentionCall) -> Attention:
    inside = _inside(recorded, call.module)
    before = [c for c in recorded.linear_calls(stop=call.index) if c.module in inside]
    main = _Main(recorded, call)
    pairs = [
        {"query": _projection(query, before, main), "key": _projection(key, before, main)}
        for query, key in call.operands
    ]
    known = [{role: each for role, each in pair.items() if each is not None} for pair in pairs]
    best = max(known, key=lambda pair: _rank(recorded, Attention(call, pair, None)))
    value = None if call.value is None else _projection(call.value, before, main)
    output = None if call.mark is None else _output(recorded, call, call.mark)
    if call.value is None and output is not None:
        value = _mixed(read_by(output), call, before, main)
    return Attention(call, best if value is None else {**best, "value": value}, output)


def _inside(recorded: RecordedModel, module: nn.Module) -> set[nn.Module]:
    """The modules among which the projections of an attention are.

    They are in the attention module, or beside it in a module smaller than an element of a list
    (BERT); others are of the next sublayer (the router of JetMoE).
    """
    path = recorded.names[module]
    parent = path.rpartition(".")[0]
    elements = recorded.elements[module]
    around = path if parent in elements or path in elements or not parent else parent
    return set(recorded.at(around).modules())


def _output(recorded: RecordedModel, attention: AttentionCall, origin: Tensor) -> Call | None:
    """The first linear layer behind an attention whose input is computed from ``origin``."""
    inside = _inside(recorded, attention.module)
    for call in recorded.linear_calls(start=attention.index):
        if call.module in inside and gradients(read_by(call), [origin])[0] is not None:
            return call
    return None


def _projection(tensor: Tensor, linears: list[Call], main: _Main) -> Projection | None:
    """The linear layer that computes ``tensor``.

    Beside it there may be a low-rank one (Zamba2), one in front (DeepSeek-V3), or one of positions
    (Conditional DETR): the closest to what the attention is about counts that no other one reads,
    of equally close ones the largest, and of those the first.
    """
    return _closest(nearest(tensor, linears), main)


def _mixed(
    context: Tensor, attention: AttentionCall, linears: list[Call], main: _Main
) -> Projection | None:
    """The linear layer whose output is multiplied with the attention weights, which have a mark."""
    mark = [attention.mark]
    for left, right in products(context):
        for weights, values in ((left, right), (right, left)):
            if gradients(weights, mark)[0] is not None and gradients(values, mark)[0] is None:
                return _projection(values, linears, main)
    return None


def _closest(found: dict[Call, Tensor], main: _Main) -> Projection | None:
    if not found:
        return None
    read = {front for call in found for front in nearest(read_by(call), list(found))}
    last = [call for call in found if call not in read]
    call = last[0]
    if len(last) > 1:
        call = max(last, key=lambda each: (main.closeness(each), _size(each)))
    gradient = found[call]
    used = gradient.reshape(-1, gradient.shape[-1]).any(0)
    channels = None if bool(used.all()) else tuple(used.nonzero().flatten().tolist())
    return Projection(call, channels)


def attention_role(recorded: RecordedModel, block: str, attention: Attention) -> str:
    """``cross_attention`` if query and key are computed from different inputs of the block.

    Where the inputs of the block are not known, if they are of different numbers of tokens.
    """
    if not {"query", "key"} <= attention.projections.keys():
        return "attention"
    call = recorded.first.get(recorded.at(block))
    given = call.inputs.values() if call is not None else ()
    tensors = [tensor for tensor in given if tensor.grad_fn is not None]
    read = [read_by(attention.projections[name].call) for name in ("query", "key")]
    first = [recorded.ancestry.first_of(tensor, tensors) for tensor in read]
    if first == [None, None]:
        first = [tensor[..., 0].numel() for tensor in read]
    return "attention" if first[0] == first[1] else "cross_attention"


def _size(call: Call) -> int:
    d_in, d_out = widths(call.module)
    return d_in * d_out
