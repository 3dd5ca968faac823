"""Blocks: which element of a list is the layer of the network around an attention.

A block holds an attention and more. The elements of T5's lists of sublayers hold an attention
alone and lie inside its blocks; the stages of a Swin lie around its blocks. Elements beside a block
are blocks too, such as the Mamba layers of a hybrid.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lightning_pelt.anatomy._feed_forward import has_feed_forward
from lightning_pelt.anatomy._mixtures import holds_experts
from lightning_pelt.anatomy._norms import is_norm
from lightning_pelt.anatomy._projections import Attention
from lightning_pelt.anatomy._recorded_model import RecordedModel


@dataclass
class Blocks:
    """The blocks of a model.

    Attributes:
        lists: paths of the blocks in network order, by the path of their list, in which ``*``
            stands for numbers: the lists of all stages are one.
        attentions: of each block, in network order; blocks without one are absent.
        of: path of the block that holds a module; modules outside the blocks are absent.
        beside: modules in elements of lists that neither hold blocks nor are in one, such as
            convolutions before a transformer.
    """

    lists: dict[str, list[str]]
    attentions: dict[str, list[Attention]]
    of: dict[nn.Module, str] = field(default_factory=dict)
    beside: set[nn.Module] = field(default_factory=set)


def find_blocks(recorded: RecordedModel, attentions: list[Attention]) -> Blocks:
    """All blocks of a model, list by list in the order in which they run."""
    by_block = _around_attentions(recorded, attentions)
    known = (*by_block, *_without_attention(recorded, by_block))
    lists: dict[str, list[str]] = {_pattern(path): [] for path in known}
    for path, elements in recorded.lists():
        pattern = _pattern(f"{path}.0")
        if pattern in lists:
            paths = [recorded.names[element] for element in elements]
            # An element that is in another list too has its path there.
            lists[pattern] += [p for p in paths if p.startswith(f"{path}.")]
    by_call = sorted(lists, key=lambda pattern: _first_call(recorded, lists[pattern]))
    blocks = Blocks({pattern: lists[pattern] for pattern in by_call}, by_block)
    everywhere = [path for listed in lists.values() for path in listed]
    for block in everywhere:
        blocks.of |= dict.fromkeys(recorded.below(block), block)
    blocks.beside = {
        module
        for module, around in recorded.elements.items()
        if module not in blocks.of and not any(b.startswith(f"{around[-1]}.") for b in everywhere)
    }
    return blocks


def _first_call(recorded: RecordedModel, listed: list[str]) -> int:
    return min(recorded.order[c.module] for path in listed for c in recorded.called(path)[:1])


def _pattern(block: str) -> str:
    """The path of the list of a block, with ``*`` for the numbers of outer lists."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", block.rpartition(".")[0])


def _around_attentions(
    recorded: RecordedModel, attentions: list[Attention]
) -> dict[str, list[Attention]]:
    """The attentions of each block that has one."""
    paths = [_block_around(recorded, attention, attentions) for attention in attentions]
    known = {_pattern(path) for path in paths}
    by_block: dict[str, list[Attention]] = {}
    for attention, path in zip(attentions, paths, strict=True):
        inner = [p for p in recorded.elements[attention.module] if p.startswith(f"{path}.")]
        # An attention between blocks is a block if it is in their list (LeViT), else it is between
        # the stages (GroupViT).
        block = next((p for p in reversed(inner) if _pattern(p) in known), path)
        if not any(other.startswith(f"{block}.") for other in paths):
            by_block.setdefault(block, []).append(attention)
    return by_block


def _block_around(
    recorded: RecordedModel, attention: Attention, attentions: list[Attention]
) -> str:
    """The innermost element of a list that holds more than the attention.

    Or that has an equal with an attention beside it (LeViT, where feed-forwards are elements too).
    """
    around = recorded.elements[attention.module]
    candidates = [p for p in around if p != recorded.names[attention.module]] or list(around)
    own = {*attention.module.modules(), *(c.module for c in (attention.output,) if c)}
    for path in reversed(candidates):
        element = recorded.at(path)
        if any(call.linear and call.module not in own for call in recorded.called(path)):
            return path
        if holds_experts(element, without=own) or _has_equal(recorded, path, attentions):
            return path
    return candidates[-1]


def _has_equal(recorded: RecordedModel, path: str, attentions: list[Attention]) -> bool:
    """Whether another element of the same class in the list at ``path`` holds an attention."""
    kind = type(recorded.at(path))
    for attention in attentions:
        for other in recorded.elements[attention.module]:
            beside = other != path and other.rpartition(".")[0] == path.rpartition(".")[0]
            if beside and type(recorded.at(other)) is kind:
                return True
    return False


def _is_layer(recorded: RecordedModel, path: str) -> bool:
    """Whether an element is a layer of a transformer: one that is checkpointed, or has a norm."""
    module = recorded.at(path)
    return isinstance(module, GradientCheckpointingLayer) or any(map(is_norm, module.modules()))


def _without_attention(recorded: RecordedModel, by_block: dict[str, list[Attention]]) -> list[str]:
    """A block of each list of layers that have a feed-forward, and an attention not known."""
    known = {_pattern(path) for path in by_block}
    found = []
    for elements in dict.fromkeys(recorded.elements.values()):
        path = elements[-1]
        if _pattern(path) in known or any(e in by_block for e in elements):
            continue
        if any(block.startswith(f"{path}.") for block in by_block):
            continue
        if _is_layer(recorded, path) and has_feed_forward(recorded, path):
            known.add(_pattern(path))
            found.append(path)
    return [path for path in found if not any(_holds(path, other) for other in found)]


def _holds(path: str, other: str) -> bool:
    """Whether an element is a stage: blocks like ``other`` are in lists inside it (FocalNet)."""
    return _pattern(other).startswith(f"{_pattern(path)}.*.")


def idle_lists(recorded: RecordedModel) -> tuple[str, ...]:
    """The lists of checkpointed layers of which none ran, such as a tower without its input."""
    found: dict[str, bool] = {}
    for path, elements in recorded.lists():
        layers = [e for e in elements if isinstance(e, GradientCheckpointingLayer)]
        if layers:
            pattern = _pattern(f"{path}.0")
            ran = any(element in recorded.first for element in layers)
            found[pattern] = found.get(pattern, False) or ran
    return tuple(pattern for pattern, ran in found.items() if not ran)
