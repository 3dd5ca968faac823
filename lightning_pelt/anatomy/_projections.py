"""Attention projections: which linear layers compute queries, keys and values, and read the result.

On transformers' attention interface they follow from the flow of data: the gradient of the query
tensor with respect to a linear layer's output is non-zero exactly where that layer computes the
queries, and in exactly those channels. Off the interface they follow from leaf names.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy.leaf_names import NAMES, Channels
from lightning_pelt.anatomy.recording import AttentionCall, Call, is_linear
from lightning_pelt.anatomy.sites import AttentionHeads

ROLES = ("query", "key", "value")


@dataclass(frozen=True, eq=False)
class Attention:
    """An attention module and its linear layers.

    Attributes:
        module: the attention module.
        index: number of module calls before its attention function.
        projections: by ``query``, ``key`` and ``value``: the call of the linear layer, and the
            output channels that it fills; None is all of them.
        heads: None off the attention interface.
        following: linear calls of the block between this attention and the next.
        output: that of ``following`` which is the output projection.
    """

    module: nn.Module
    index: int
    projections: dict[str, tuple[Call, Channels | None]]
    heads: AttentionHeads | None
    following: list[Call] = field(default_factory=list)
    output: Call | None = None


def find_attentions(recorded: RecordedModel) -> list[Attention]:
    """Every attention module of a block once, in the order of the first calls.

    They are found by the interface, and by name in the blocks that do not use it, such as those of
    LongT5's encoder.
    """
    calls: dict[nn.Module, AttentionCall] = {}
    for call in recorded.attention_calls:
        calls.setdefault(call.module, call)
    found = [_by_gradient(recorded, call) for call in calls.values()]
    found = [a for a in found if a.projections and a.module in recorded.block_of]
    reached = {recorded.block_of[a.module] for a in found}
    found += [a for a in _by_name(recorded) if recorded.block_of[a.module] not in reached]
    found.sort(key=lambda attention: attention.index)
    following = [_following(recorded, attention, found) for attention in found]
    return [
        replace(attention, following=calls, output=_output_projection(attention, calls))
        for attention, calls in zip(found, following, strict=True)
    ]


def _by_gradient(recorded: RecordedModel, call: AttentionCall) -> Attention:
    """Projections of an attention on the interface, with the output channels that they fill."""
    inside = set(call.module.modules())
    linears = [
        linear
        for linear in recorded.linear_calls(stop=call.index)
        if linear.module in inside and linear.output is not None
    ]
    linears = linears[-len({c.module for c in linears}) :]  # a shared layer runs more than once
    outputs = [linear.output for linear in linears if linear.output is not None]
    generator = torch.Generator().manual_seed(0)
    found: dict[str, tuple[Call, Channels | None]] = {}
    for role, tensor in zip(ROLES, (call.query, call.key, call.value), strict=True):
        if not tensor.requires_grad:
            continue
        noise = torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor)
        gradients = torch.autograd.grad(
            (tensor * noise).sum(), outputs, retain_graph=True, allow_unused=True
        )
        for linear, gradient in zip(linears, gradients, strict=True):
            if gradient is not None and gradient.abs().sum() > 0:
                found[role] = linear, _channels(gradient)  # the last one is the nearest
    heads = AttentionHeads(call.key.shape[1], call.key.shape[3], call.value.shape[3])
    return Attention(call.module, call.index, found, heads)


def _channels(gradient: Tensor) -> Channels | None:
    """The channels where ``gradient`` is non-zero; None if it is so in all of them."""
    used = gradient.reshape(-1, gradient.shape[-1]).abs().sum(0) > 0
    return None if bool(used.all()) else tuple(used.nonzero().flatten().tolist())


def _by_name(recorded: RecordedModel) -> list[Attention]:
    """Attentions whose projections have the leaf names of a family off the interface."""
    found = []
    for module in recorded.names:
        if "Attention" not in type(module).__name__:  # other modules have an ``in_proj`` too
            continue
        children = dict(module.named_children())
        linear = {name for name, child in children.items() if is_linear(child)}
        names = next((n for n in NAMES if linear.issuperset(n.children)), None)
        if names is None or module not in recorded.block_of:
            continue
        calls = {role: recorded.first.get(children[getattr(names, role)]) for role in ROLES}
        if any(call is None or not _batch_first(recorded, call) for call in calls.values()):
            continue
        fused: dict[str, Any] = names.fused(recorded.model.config) if names.fused else {}
        projections = {r: (call, fused.get(r)) for r, call in calls.items() if call is not None}
        last = max(recorded.calls.index(call) for call, _ in projections.values())
        found.append(Attention(module, last + 1, projections, None))
    return found


def _batch_first(recorded: RecordedModel, call: Call) -> bool:
    """Whether a projection sees (B, T, d), not (T, B, d): gates pool over the second dimension."""
    return call.output is not None and call.output.shape[0] == recorded.batch


def _following(
    recorded: RecordedModel, attention: Attention, attentions: list[Attention]
) -> list[Call]:
    """Linear calls of the block between this attention and the next.

    Calls inside other attentions are left out.
    """
    later = [other.index for other in attentions if other.index > attention.index]
    inside = {module for other in attentions for module in other.module.modules()}
    own = set(attention.module.modules())
    block = recorded.block_of[attention.module]
    return [
        call
        for call in recorded.linear_calls(attention.index, min(later, default=None))
        if recorded.block_of.get(call.module) == block
        and recorded.first[call.module] is call  # a shared layer runs more than once
        and (call.module in own or call.module not in inside)
    ]


def _output_projection(attention: Attention, following: list[Call]) -> Call | None:
    """The first following linear layer whose input depends on the values."""
    value = attention.projections.get("value")
    if value is None or value[0].output is None:
        return None
    for call in following:
        context = next(iter(call.inputs.values()))
        if not context.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(
            context.sum(), value[0].output, retain_graph=True, allow_unused=True
        )
        if gradient is not None:
            return call
    return None
