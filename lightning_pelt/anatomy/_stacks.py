"""Stacks: the lists of blocks by name, and the blocks by number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lightning_pelt.anatomy._blocks import Blocks
from lightning_pelt.anatomy._causality import is_causal
from lightning_pelt.anatomy._projections import Attention, attention_role
from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy.sites import Stack


class Position(NamedTuple):
    """A block by the name of its stack and its number there."""

    stack: str
    block: int


def find_stacks(recorded: RecordedModel, blocks: Blocks) -> list[Stack]:
    """The stacks of a model, in the order in which they run."""
    lists = blocks.lists
    cross = {path for path, listed in lists.items() if _attends_twice(blocks, listed)}
    names = _names(list(lists), cross)
    stacks = []
    for path, listed in lists.items():
        last = path == [*lists][-1]
        attentions = _self_attentions(recorded, blocks, listed)
        causal = _may_be_causal(recorded, attentions) or (last and _generates(recorded))
        name = names[path]
        if len(lists) == 1 and causal and attentions and "encoder" not in path.split("."):
            name = "decoder"
        elif name in GENERIC:  # a path that tells nothing
            side = "decoder" if causal else "encoder"
            name = name if side in names.values() else side
        stacks.append(Stack(name, _caller(recorded, listed), causal, tuple(listed)))
    return stacks


def _self_attentions(
    recorded: RecordedModel, blocks: Blocks, listed: Sequence[str]
) -> list[Attention]:
    return [
        attention
        for block in listed
        for attention in blocks.attentions.get(block, ())
        if attention_role(recorded, block, attention) == "attention"
    ]


def _may_be_causal(recorded: RecordedModel, attentions: list[Attention]) -> bool:
    """Whether the first or the last is causal; without a known attention, a stack of words may."""
    words = max(recorded.words, default=0)
    ends = attentions[:1] + attentions[-1:]
    return any(is_causal(end, words=words) for end in ends) if ends else words > 0


def _generates(recorded: RecordedModel) -> bool:
    """Whether the last stack writes words: PaliGemma's sees all of a prompt, not of an answer."""
    model = recorded.model
    encoder = getattr(model.config, "is_encoder_decoder", False)
    return bool(recorded.words) and model.can_generate() and not encoder


def _attends_twice(blocks: Blocks, listed: Sequence[str]) -> bool:
    return any(len(blocks.attentions.get(block, ())) > 1 for block in listed)


def block_positions(stacks: list[Stack]) -> dict[str, Position]:
    """The position of each block by its path, in network order."""
    return {
        path: Position(stack.name, number)
        for stack in stacks
        for number, path in enumerate(stack.blocks)
    }


GENERIC = {"model", "layers", "layer", "blocks", "block", "h", "transformer", "*"}
SUFFIXES = ("_model", "_tower", "_encoder", "_transformer", "_backbone", "_layers")
SYNONYMS = {"visual": "vision", "language": "text"}
SIDES = ("encoder", "decoder")


def _names(paths: list[str], cross: set[str]) -> dict[str, str]:
    """A short name for each list of blocks, no two the same.

    With cross-attention (paths ``cross``) it is encoder or decoder. Otherwise it is the first part
    of the path that tells something, and of lists that share it, the first that differs as well.
    """
    if len(paths) == 1:
        return {paths[0]: "encoder"}
    if len(paths) == 2 and len(cross) == 1:
        return {path: "decoder" if path in cross else "encoder" for path in paths}
    everything = {part for path in paths for part in path.split(".")}
    telling = {path: _telling(path, everything) for path in paths}
    common = set.intersection(*map(set, telling.values()))
    for path, parts in telling.items():
        telling[path] = [part for part in parts if part not in common] or parts[-1:]
    names: dict[str, str] = {}
    for path, parts in telling.items():
        others = [o for p, o in telling.items() if p != path and o[:1] == parts[:1]]
        own = [part for part in parts[1:] if not any(part in other for other in others)]
        further = own or [part for part in parts[1:] if not all(part in o for o in others)]
        names[path] = "_".join((*parts[:1], *further[: 1 if others else 0]))
    if len(set(names.values())) < len(names):
        return {path: path.replace(".*", "").replace(".", "_") for path in paths}
    return names


def _telling(path: str, others: set[str]) -> list[str]:
    """The parts of a path that tell a list from others; encoder and decoder come last.

    Args:
        path: of the list.
        others: the parts of the paths of all lists: ``detr_encoder`` keeps its suffix beside
            ``detr_decoder``.
    """
    parts = []
    for part in path.split("."):
        short = next((part.removesuffix(s) for s in SUFFIXES if part.endswith(s)), part)
        short = part if f"{short}_decoder" in others else short
        parts.append(SYNONYMS.get(short, short))
    telling = [part for part in dict.fromkeys(parts) if part not in (*GENERIC, *SIDES)]
    return [*telling, *(part for part in parts if part in SIDES)] or parts[-1:]


def _caller(recorded: RecordedModel, listed: Sequence[str]) -> str:
    """Path of the innermost module that is called and runs all blocks of a stack."""
    path = listed[0].rpartition(".")[0]
    while path:
        called = recorded.at(path) in recorded.first
        if called and all(block.startswith(f"{path}.") for block in listed):
            break
        path = path.rpartition(".")[0]
    return path
