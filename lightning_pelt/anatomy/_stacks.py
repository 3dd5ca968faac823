"""Stacks: the blocks that hold attentions, in network order, by the list that they are in."""

from __future__ import annotations

from typing import NamedTuple

from lightning_pelt.anatomy._causality import is_causal
from lightning_pelt.anatomy._projections import Attention
from lightning_pelt.anatomy._recorded_model import RecordedModel
from lightning_pelt.anatomy.sites import Stack


class Position(NamedTuple):
    """A block by the name of its stack and its number there."""

    stack: str
    block: int


def find_stacks(recorded: RecordedModel, blocks: dict[str, list[Attention]]) -> list[Stack]:
    """The stacks of a model.

    Args:
        recorded: the model.
        blocks: the attentions of each block by its path, in network order.
    """
    lists: dict[str, list[str]] = {}
    for block in blocks:
        lists.setdefault(block.rpartition(".")[0], []).append(block)
    cross = {path for path, listed in lists.items() if len(blocks[listed[0]]) > 1}
    names = _names(list(lists), cross)
    stacks = []
    for path, listed in lists.items():
        causal = any(is_causal(blocks[path][0]) for path in {listed[0], listed[-1]})
        name = "decoder" if causal and len(lists) == 1 else names[path]
        stacks.append(Stack(name, _caller(recorded, path), causal, tuple(listed)))
    return stacks


def block_positions(stacks: list[Stack]) -> dict[str, Position]:
    """The position of each block by its path, in network order."""
    return {
        path: Position(stack.name, number)
        for stack in stacks
        for number, path in enumerate(stack.blocks)
    }


def _names(paths: list[str], cross: set[str]) -> dict[str, str]:
    """A short name for each list of blocks, no two the same.

    With cross-attention (paths ``cross``) it is encoder or decoder, otherwise the first part of the
    path in which the lists differ, or everything from there on.
    """
    if len(paths) == 1:
        return {paths[0]: "encoder"}
    if len(paths) == 2 and len(cross) == 1:
        return {path: "decoder" if path in cross else "encoder" for path in paths}
    parts = [path.split(".") for path in paths]
    depth = next(i for i, names in enumerate(zip(*parts, strict=False)) if len(set(names)) > 1)
    short = [part[depth].removesuffix("_model") for part in parts]
    if len(set(short)) < len(short):
        short = ["_".join(part[depth:]) for part in parts]
    return dict(zip(paths, short, strict=True))


def _caller(recorded: RecordedModel, path: str) -> str:
    """Path of the nearest module around a list of blocks that is called itself."""
    while path and recorded.model.get_submodule(path) not in recorded.first:
        path = path.rpartition(".")[0]
    return path
