"""Plans: which methods go into which blocks, and whether they are gated."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.config import Configured, Nested, rebuild, to_plain
from lightning_pelt.utils.errors import unknown


@dataclass(frozen=True)
class Group(Nested):
    """Blocks and the methods that each of them gets.

    Args:
        methods: the methods of every block of the group.
        blocks: ``all``, block numbers from 0 (negative numbers count from the last block), or
            ranges as a string, ``0-3,6``.
        stack: ``encoder``, ``decoder``, ... in a model of several stacks; None is all of them.

    Example:
        >>> from lightning_pelt import LoRA
        >>> Group([LoRA()], blocks="0-2,4").numbers(6)
        [0, 1, 2, 4]
        >>> Group([LoRA()], blocks=[0, -1]).numbers(6)
        [0, 5]
    """

    methods: Sequence[Method]
    blocks: str | Sequence[int] = "all"
    stack: str | None = None

    def contains(self, site: Site, depth: int) -> bool:
        """Whether ``site``, in a stack of ``depth`` blocks, belongs to the group."""
        if self.stack is not None and site.stack != self.stack:
            return False
        if self.blocks == "all":
            return True
        return site.block is not None and site.block in self.numbers(depth)

    def numbers(self, depth: int) -> list[int]:
        """Numbers of the group's blocks in a stack of ``depth`` blocks.

        Raises:
            ValueError: the stack does not have one of the blocks, or ``blocks`` is not a range.
        """
        if self.blocks == "all":
            return list(range(depth))
        if isinstance(self.blocks, str):
            ranges = _ranges(self.blocks)
        else:
            ranges = [(number, number) for number in self.blocks]
        for number in (end for ends in ranges for end in ends):
            if not -depth <= number < depth:
                raise ValueError(
                    f"block {number} does not exist: the stack has the blocks 0 to {depth - 1}; "
                    f"the nearest is {depth - 1 if number > 0 else 0}"
                )
        return sorted({n % depth for first, last in ranges for n in range(first, last + 1)})


def _ranges(text: str) -> list[tuple[int, int]]:
    """The first and the last number of every range."""
    ranges = []
    for piece in text.split(","):
        start, dash, end = piece.strip().partition("-")
        try:
            ranges.append((int(start), int(end if dash else start)))
        except ValueError:
            raise ValueError(
                f"blocks={text!r} is not a range: write 'all', a list of numbers, or ranges such "
                "as '0-3,6'"
            ) from None
    return ranges


class Placed(NamedTuple):
    """A method of a plan, the number of its group, and its sites in a model.

    Example:
        >>> from lightning_pelt import LoRA, Plan
        >>> from lightning_pelt.anatomy import examine
        >>> from lightning_pelt.testing import tiny_bert
        >>> (placed,) = Plan.uniform(LoRA()).place(examine(tiny_bert()))
        >>> placed.group, placed.method.name, len(placed.sites)  # query and value of two blocks
        (0, 'lora', 4)
    """

    group: int
    method: Method
    sites: list[Site]


class Plan(Configured):
    """Which methods go into which blocks of a model.

    Args:
        groups: blocks and their methods. Groups may overlap, but no block may get two methods with
            the same name.
        norms: whether all norms of the base are trained too, as the method ``norm``. None follows
            the papers of the methods.

    Attributes:
        train_base: whether the base is trained too, as in full fine-tuning.

    Example:
        >>> from lightning_pelt import Adapter, Gate, LoRA, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> first, last = Group([Adapter()], blocks=[0]), Group([LoRA(gate=Gate())], blocks=[-1])
        >>> attachment = attach(tiny_bert(), Plan([first, last]))
        >>> list(attachment.gates)
        ['01/lora.query', '01/lora.value']
        >>> Plan.uniform(LoRA()) == Plan([Group([LoRA()])])
        True
    """

    train_base: bool = False

    def __init__(self, groups: Sequence[Group] = (), norms: bool | None = None) -> None:
        self.groups: tuple[Group, ...] = tuple(groups)
        self.norms: bool = any(m.tunes_norms for m in self.methods) if norms is None else norms

    @classmethod
    def uniform(cls, *methods: Method, norms: bool | None = None) -> Plan:
        """The same methods in every block."""
        return Plan([Group(methods)], norms)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods of all groups, in order."""
        return tuple(method for group in self.groups for method in group.methods)

    def resolved(self, anatomy: Anatomy) -> Plan:
        """The plan with the blocks and sizes that it has on a model."""
        return self

    def place(self, anatomy: Anatomy) -> list[Placed]:
        """The sites of each method of each group in a model.

        Raises:
            ValueError: the model lacks a stack or block, a method matches no site, or a block gets
                two methods with the same name.
        """
        placed: list[Placed] = []
        owners: dict[tuple[str, int | None, str], int] = {}
        stacks = {stack.name: len(stack.blocks) for stack in anatomy.stacks}
        for number, group in enumerate(self.groups):
            if group.stack is not None and group.stack not in stacks:
                raise unknown(f"stack of {anatomy.model_type}", group.stack, stacks)
            for depth in [stacks[group.stack]] if group.stack else stacks.values():
                group.numbers(depth)
            for method in group.methods:
                found = method.where(anatomy)
                sites = [s for s in found if group.contains(s, stacks.get(s.stack, 0))]
                if not sites:
                    roles = ", ".join(dict.fromkeys(site.role for site in anatomy.sites))
                    raise ValueError(
                        f"{method} matches no site of {anatomy.model_type} in blocks "
                        f"{group.blocks} of {group.stack or 'any stack'}: the model has {roles}"
                    )
                _refuse_experts(method, sites)
                _refuse_equal_names(owners, method, sites, number=len(placed))
                placed.append(Placed(number, method, sites))
        return placed

    def folded(self) -> Plan:
        """The plan of the trained model: for example a prefix without its MLP."""
        plan = copy.copy(self)
        plan.groups = tuple(
            replace(group, methods=tuple(method.folded() for method in group.methods))
            for group in self.groups
        )
        return plan

    def init_args(self) -> dict[str, Any]:
        """The arguments of the constructor as plain data."""
        return {"groups": [to_plain(group) for group in self.groups], "norms": self.norms}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_config() == other.to_config()

    def __hash__(self) -> int:
        return hash(str(self.to_config()))

    def __repr__(self) -> str:
        norms = ["norms=True"] if self.norms else []
        return f"{type(self).__name__}({', '.join([*map(repr, self.groups), *norms])})"


def _refuse_experts(method: Method, sites: Sequence[Site]) -> None:
    role = next((site.role for site in sites if site.experts), None)
    if role is not None and not method.takes_experts:
        raise ValueError(
            f"{type(method).__name__} does not extend stacked weights of experts ({role}), as LoRA "
            "does: take LoRA there, or leave the site out with sites=..."
        )


def _refuse_equal_names(
    owners: dict[tuple[str, int | None, str], int],
    method: Method,
    sites: Iterable[Site],
    *,
    number: int,
) -> None:
    """Enter method ``number`` into ``owners``, by stack, block and name of the method."""
    for site in sites:
        key = (site.stack, site.block, method.name)
        if owners.setdefault(key, number) != number:
            raise ValueError(
                f"block {site.block} gets two methods named {method.name!r}: give one of them "
                f"another name, {type(method).__name__}(name=...), or their groups different blocks"
            )


def from_config(config: Mapping[str, Any]) -> Plan:
    """The plan that ``config``, the result of ``to_config``, describes.

    Raises:
        ValueError: an unknown class or argument, or ``config`` does not describe a plan.
    """
    plan = rebuild(config)
    if not isinstance(plan, Plan):
        found = config.get("class_path") if isinstance(config, Mapping) else config
        raise ValueError(
            f"{found!r} is not a plan: give the configuration of a plan, such as "
            "lightning_pelt.Plan"
        )
    return plan
