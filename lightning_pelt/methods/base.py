"""The contract of a tuning method: where it goes, and what it builds there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods.config import Configured
from lightning_pelt.methods.gate import Gate, GateView
from lightning_pelt.methods.submodule import Submodule


class Part(NamedTuple):
    """A built submodule, the path of its host, and its key among the host's submodules."""

    path: str
    key: str
    module: Submodule


class Cost(NamedTuple):
    """Parameters of a method in one block: ``fixed``, and ``unit`` for each step of its size.

    A step is one rank, one prefix token, or one unit of a bottleneck. BitFit has no steps.

    Example:
        >>> Cost(fixed=768, unit=1537).of(8)
        13064
    """

    fixed: int
    unit: int

    def of(self, size: int) -> int:
        """Number of parameters at ``size``."""
        return self.fixed + self.unit * size


@dataclass(frozen=True)
class Place:
    """What a method builds on: sites of one block that read the same tensor.

    Args:
        sites: in network order.
        gates: one per site; None where the method is not gated.
        shared: the method's shared parts by key, see :meth:`Method.build_shared`.
    """

    sites: tuple[Site, ...]
    gates: tuple[GateView | None, ...]
    shared: dict[str, Submodule] = field(default_factory=dict)


class Method(Configured, ABC):
    """A tuning method. Every child is a frozen dataclass that is its own configuration.

    A new method is one file: fields of plain data, :meth:`where`, :meth:`build` and the submodule.
    The other members answer questions that the rest of the package asks of a method. Their defaults
    suit a method that trains ordinary weights and cannot be merged. Methods that extend linear
    layers subclass :class:`~lightning_pelt.methods.linear.LinearMethod`. The tests of
    :class:`~lightning_pelt.testing.MethodConformance` cover all of it.

    Attributes:
        name: the key of its submodules, parameter group, gates and log lines. Two methods of one
            block need different names.
        gate: how its submodules are gated; None leaves them ungated.
        tunes_norms: whether its paper trains the norms of the model too.
        weight_decay: whether the optimizer's weight decay applies. False for weights whose neutral
            value is not zero, and for those that zero would silence.
        mergeable: whether the method, ungated or behind a constant gate, equals a change of the
            base's weights, see :meth:`Submodule.weight_updates`.
        takes_experts: whether it extends stacked weights of experts (``expert.in|out``).
        batch_inputs: names of the inputs that it reads beside those of the model.
    """

    name: str
    gate: Gate | None
    # Without annotations: jsonargparse would look for them in each child.
    tunes_norms = False
    weight_decay = True
    mergeable = False
    takes_experts = False
    positions = 0  # of the model's table of positions, which it takes from the tokens
    batch_inputs = cast("tuple[str, ...]", ())

    # Where it goes and what it builds.

    @abstractmethod
    def where(self, anatomy: Anatomy) -> list[Site]:
        """The sites of a model that this method extends.

        Raises:
            ValueError: the model has no such site; the message names the sites that it has.
        """

    @abstractmethod
    def build(self, place: Place) -> list[Part]:
        """The submodules for sites that read one tensor.

        Random weights are drawn from torch's generator. The builder seeds it by method and place,
        so that the weights at a place do not depend on the rest of the plan.
        """

    def build_shared(self, anatomy: Anatomy, sites: Sequence[Site]) -> list[Part]:
        """Parts that several blocks use: owned once, handed to the blocks by reference."""
        return []

    def gate_width(self, site: Site) -> int | None:
        """Width of the tensor that the gate at ``site`` reads, where the method hands it over.

        None, the default: the gate reads the input of the site, and its layer evaluates itself
        before the site runs. A width: the layer waits for the submodule, which must pass the
        tensor to :meth:`GateView.on` in every forward.
        """
        return None

    # Questions that the rest of the package asks.

    def size(self, site: Site) -> str:
        """Its size at ``site`` for tables, such as ``r=8``; empty for a method without a size."""
        return ""

    def cost(self, sites: Sequence[Site]) -> Cost | None:
        """Its trained parameters at the sites of one block, gates aside; None if it cannot tell."""
        return None

    def sized(self, size: int) -> Method:
        """The method with another rank, length or bottleneck; itself if it has no size."""
        return self

    def deployed(self, sites: Sequence[Site], trained: int) -> int:
        """Number of values that remain of ``trained`` parameters after training."""
        return trained

    def replaced_rows(self, count: int) -> frozenset[int]:
        """The rows of a table of ``count`` word embeddings that it replaces by its own.

        Their values in the base do not matter, and need not be saved.
        """
        return frozenset()

    def folded(self) -> Method:
        """The method that replaces this one after training."""
        return self

    @property
    def trained_by_rows(self) -> bool:
        """Whether a batch gives gradients only to the weights that its rows name."""
        return False

    def for_one_profile(self) -> Method:
        """The method with a single profile; itself if it has no profiles."""
        return self

    def refuse_sharding(self) -> None:
        """Raise where sharded data parallelism (FSDP2) would train this method wrongly.

        Raises:
            ValueError: the reason, and the strategy to use instead.
        """
