"""Plans: which methods, in which blocks, gated or not."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.configured import Configured
from lightning_pelt.errors import unknown
from lightning_pelt.gate import Gate
from lightning_pelt.method import Method
from lightning_pelt.methods import Adapter, LoRA, Prefix


@dataclass(frozen=True)
class Group:
    """Methods for some blocks.

    Args:
        methods: every one of them goes into every block of the group.
        blocks: ``all``; or block numbers from 0, negative ones counting from the last; or ranges as
            a string, ``0-3,6``.
        stack: ``encoder``, ``decoder``, ... in a model of several stacks; None is all of them.
    """

    methods: Sequence[Method]
    blocks: str | Sequence[int] = "all"
    stack: str | None = None

    def contains(self, site: Site, depth: int) -> bool:
        """Whether ``site`` lies in this group, in a stack of ``depth`` blocks."""
        if self.stack is not None and site.stack != self.stack:
            return False
        if site.block is None or self.blocks == "all":  # outside the blocks belongs to all of them
            return self.blocks == "all"
        return site.block in self.numbers(depth)

    def numbers(self, depth: int) -> list[int]:
        """The group's blocks in a stack of ``depth``.

        Raises:
            ValueError: a block that the stack does not have.
        """
        if self.blocks == "all":
            return list(range(depth))
        asked = _ranges(self.blocks) if isinstance(self.blocks, str) else list(self.blocks)
        for number in asked:
            if not -depth <= number < depth:
                raise ValueError(
                    f"block {number} does not exist: the stack has the blocks 0 to {depth - 1}; "
                    f"the nearest is {depth - 1 if number > 0 else 0}"
                )
        return sorted({number % depth for number in asked})


def _ranges(text: str) -> list[int]:
    numbers: list[int] = []
    for piece in text.split(","):
        start, dash, end = piece.strip().partition("-")
        try:
            numbers += range(int(start), int(end if dash else start) + 1)
        except ValueError:
            raise ValueError(
                f"blocks={text!r} is not understood: write 'all', a list of numbers, or ranges "
                "such as '0-3,6'"
            ) from None
    return numbers


class Plan:
    """Which methods go where in a model.

    Args:
        groups: blocks and their methods. Groups may overlap as long as no block gets two methods of
            one name.
        norms: whether the norms of the base are trained along, all of them; None is as the papers
            of the methods have it. They count as the method ``norm``.

    Attributes:
        train_base: whether the base itself is trained, as in full fine-tuning.
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
        """Every method of every group, in order."""
        return tuple(method for group in self.groups for method in group.methods)

    def place(self, anatomy: Anatomy) -> list[tuple[int, Method, list[Site]]]:
        """Where each method of each group goes: (group number, method, sites).

        Raises:
            ValueError: an unknown stack or block, a method that matches no site, or two methods of
                one name in a block.
        """
        placed: list[tuple[int, Method, list[Site]]] = []
        taken: dict[tuple[str, int | None, str], int] = {}
        for number, group in enumerate(self.groups):
            stacks = {stack.name: len(stack.blocks) for stack in anatomy.stacks}
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
                _claim(taken, method, sites, len(placed))
                placed.append((number, method, sites))
        return placed

    def folded(self) -> Plan:
        """The plan once training is over: a prefix without its MLP."""
        plan = copy.copy(self)
        plan.groups = tuple(
            replace(group, methods=tuple(method.folded() for method in group.methods))
            for group in self.groups
        )
        return plan

    def to_config(self) -> dict[str, Any]:
        """Plain data that :func:`from_config` rebuilds the plan from."""
        return {"class_path": _public_path(type(self)), "init_args": self.init_args()}

    def init_args(self) -> dict[str, Any]:
        return {"groups": [_plain(group) for group in self.groups], "norms": self.norms}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_config() == other.to_config()

    def __hash__(self) -> int:
        return hash(str(self.to_config()))

    def __repr__(self) -> str:
        norms = ["norms=True"] if self.norms else []
        return f"{type(self).__name__}({', '.join([*map(repr, self.groups), *norms])})"


def _claim(
    taken: dict[tuple[str, int | None, str], int], method: Method, sites: Iterable[Site], owner: int
) -> None:
    for site in sites:
        where = (site.stack, site.block, method.name)
        if taken.setdefault(where, owner) != owner:
            raise ValueError(
                f"block {site.block} gets two methods named {method.name!r}: give one of them "
                f"another name, {type(method).__name__}(name=...), or their groups different blocks"
            )


class UniPELT(Plan):
    """Gated submodules side by side in every block (Mao et al., 2022;
    https://arxiv.org/abs/2110.07577).

    Args:
        methods: by default the paper's APL: adapter, prefix and LoRA. The paper's AP is
            ``[Adapter(), Prefix()]``.
        gate: for every method that does not bring a gate of its own.
        norms: whether the norms of the base are trained along.
    """

    def __init__(
        self,
        methods: Sequence[Method] | None = None,
        gate: Gate | None = None,
        norms: bool = False,
    ) -> None:
        default = Gate() if gate is None else gate
        given = (Adapter(), Prefix(), LoRA()) if methods is None else methods
        gated = [m if m.gate is not None else replace(m, gate=default) for m in given]  # type: ignore[type-var]
        super().__init__([Group(gated)], norms)

    def init_args(self) -> dict[str, Any]:
        return {"methods": [_plain(method) for method in self.methods], "norms": self.norms}


class HeadOnly(Plan):
    """Nothing but the head is trained: the baseline that every method has to beat."""

    def __init__(self) -> None:
        super().__init__()

    def init_args(self) -> dict[str, Any]:
        return {}


class FullFineTuning(HeadOnly):
    """Everything is trained: the baseline that the methods are measured against."""

    train_base = True


def _public_path(cls: type) -> str:
    package = cls.__module__.partition(".")[0]
    if getattr(sys.modules[package], cls.__name__, None) is cls:
        return f"{package}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def _plain(value: Any) -> Any:
    """A configuration object as plain data: methods by class path, others as mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Configured):
            return {"class_path": _public_path(type(value)), "init_args": fields}
        return fields
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def from_config(config: dict[str, Any]) -> Plan:
    """The plan that ``config``, made by :meth:`Plan.to_config`, describes.

    Classes outside this package must have been imported before: a configuration names classes but
    never makes Python import any.

    Raises:
        ValueError: an unknown class or argument.
    """
    plan = _rebuild(config)
    if not isinstance(plan, Plan):
        raise ValueError(f"{config.get('class_path')!r} is not a plan")
    return plan


def _rebuild(value: Any) -> Any:
    if isinstance(value, list):
        return [_rebuild(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_path" in value:
        arguments = {k: _rebuild(v) for k, v in value.get("init_args", {}).items()}
        return _call(_find_class(value["class_path"]), arguments)
    arguments = {k: _rebuild(v) for k, v in value.items()}
    return _call(Group if "methods" in arguments else Gate, arguments)


def _call(cls: type, arguments: dict[str, Any]) -> Any:
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(f"{cls.__name__} cannot be built from {arguments}: {error}") from error


def _find_class(path: str) -> type:
    module, _, name = path.rpartition(".")
    if module.partition(".")[0] == "lightning_pelt":
        importlib.import_module("lightning_pelt")
    found = getattr(sys.modules.get(module), name, None)
    if not (isinstance(found, type) and issubclass(found, (Plan, Configured))):
        package = importlib.import_module("lightning_pelt")
        known = [f"lightning_pelt.{n}" for n in package.__all__ if _is_config(getattr(package, n))]
        raise unknown("class of a plan", path, known)
    return found


def _is_config(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, (Plan, Configured))
