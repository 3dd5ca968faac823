"""A piece of a plan that reads its weights from an AdapterHub folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.attach.gates import by_source
from lightning_pelt.exchange.adapterhub.tensors import HubTensors
from lightning_pelt.methods.gate import Gate, GateView
from lightning_pelt.plans.plan import Group, Plan


class Assignment(NamedTuple):
    """A tensor of the model, the tensor of the file that replaces its values, and its name."""

    target: Tensor
    source: Tensor
    name: str


class Placed(NamedTuple):
    """Sites of one block that read one tensor, and the submodules that were built there."""

    sites: tuple[Site, ...]
    modules: list[Any]


@dataclass(frozen=True)
class Piece(ABC):
    """One group of a plan with one method.

    Args:
        group: the group.
    """

    group: Group

    def shared(self, sites: Sequence[Site]) -> int:
        """How many submodules the method builds for all its sites together."""
        return 0

    def parts(self, sites: tuple[Site, ...]) -> int:
        """How many submodules it builds at sites that read one tensor."""
        return len(sites)

    @abstractmethod
    def assign(
        self, shared: list[Any], placed: list[Placed], tensors: HubTensors
    ) -> Iterator[Assignment]:
        """What each of its parameters becomes."""


def plan_of(pieces: Sequence[Piece]) -> Plan:
    """The plan of all pieces. Norms of the base are never trained by AdapterHub."""
    return Plan([piece.group for piece in pieces], norms=False)


def assignments(
    pieces: Sequence[Piece], attachment: Attachment, tensors: HubTensors
) -> list[Assignment]:
    """All assignments of a plan that was attached.

    Raises:
        ValueError: the file lacks a tensor.
    """
    built = {name: iter(modules) for name, modules in attachment.submodules.items()}
    found: list[Assignment] = []
    for piece, each in zip(pieces, attachment.plan.place(attachment.anatomy), strict=True):
        modules = built[each.method.name]
        shared = list(islice(modules, piece.shared(each.sites)))
        placed = [
            Placed(same, list(islice(modules, piece.parts(same)))) for same in by_source(each.sites)
        ]
        found += piece.assign(shared, placed, tensors)
    return found


def gate_of(view: GateView | None, weight: Tensor, bias: Tensor, name: str) -> list[Assignment]:
    """The assignments of one gate, weight (1, d) and bias (1,)."""
    assert view is not None
    own = view.parameters()
    return [
        Assignment(own[0], weight, f"{name}.weight"),
        Assignment(own[1], bias, f"{name}.bias"),
    ]


def gate_here(gated: bool) -> Gate | None:
    """The gate of AdapterHub, which pools over padding too."""
    return Gate(pool="all") if gated else None


def all_blocks(anatomy: Anatomy) -> list[tuple[str, int]]:
    """Stack and number of all blocks, in the order in which AdapterHub counts them."""
    return [(s.name, number) for s in anatomy.stacks for number in range(len(s.blocks))]


def groups_of(
    method: Any, blocks: Sequence[tuple[str, int]], anatomy: Anatomy, *, stacks: bool = False
) -> list[Group]:
    """Groups of ``blocks`` with one method: a single one if these are all blocks.

    Args:
        method: of the groups.
        blocks: as by :func:`all_blocks`.
        anatomy: of the model.
        stacks: one group for each stack in any case.
    """
    if list(blocks) == all_blocks(anatomy) and not stacks:
        return [Group([method])]
    numbers: dict[str, list[int]] = {}
    for stack, number in blocks:
        numbers.setdefault(stack, []).append(number)
    several = len(anatomy.stacks) > 1
    return [Group([method], own, stack if several else None) for stack, own in numbers.items()]
