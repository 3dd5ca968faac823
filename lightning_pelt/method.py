"""The contract of a tuning method: where it goes, and what it builds there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.configured import Configured
from lightning_pelt.gate import Gate, GateView
from lightning_pelt.submodule import Submodule


class Part(NamedTuple):
    """A built submodule, the path of its host, and its key among the host's submodules."""

    path: str
    key: str
    module: Submodule


@dataclass(frozen=True)
class Place:
    """What a method is given to build on: sites of one block that read the same tensor.

    Args:
        sites: in network order.
        gates: one per site; None where the method is not gated.
        shared: the method's shared parts by key, see :meth:`Method.build_shared`.
    """

    sites: tuple[Site, ...]
    gates: tuple[GateView | None, ...]
    shared: dict[str, Submodule] = field(default_factory=dict)


class Method(Configured, ABC):
    """A way of tuning; every child is a frozen dataclass that is its own configuration.

    A new method is one file: fields of plain data, ``where``, ``build``, and the submodule.
    :class:`lightning_pelt.testing.MethodConformance` tests it.

    Attributes:
        name: the key of its submodules, parameter group, gates and log lines. Two methods of one
            block need different names.
        gate: how its submodules are gated; None is not at all.
        tunes_norms: whether its paper trains the model's norms along with it.
    """

    name: str
    gate: Gate | None
    tunes_norms = False  # not annotated: jsonargparse would look for the annotation in each child

    @abstractmethod
    def where(self, anatomy: Anatomy) -> list[Site]:
        """The sites of a model that this method extends.

        Raises:
            ValueError: the model has no such site; the message names what it has.
        """

    @abstractmethod
    def build(self, place: Place) -> list[Part]:
        """The submodules for sites that read one tensor."""

    def build_shared(self, anatomy: Anatomy, sites: Sequence[Site]) -> list[Part]:
        """Parts that several blocks use: owned once, handed to the blocks by reference."""
        return []

    def gate_width(self, site: Site) -> int | None:
        """Width of the tensor that the method hands to its gate itself, where it does.

        None: the gate reads what the site reads, together with all others that do.
        """
        return None

    def deployed(self, sites: Sequence[Site], trained: int) -> int:
        """Number of values that remain of ``trained`` ones once training is over."""
        return trained

    def folded(self) -> Method:
        """The method that stands for this one once training is over."""
        return self
