"""The plan that puts given methods on given sites."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods.base import Method
from lightning_pelt.plans.plan import Group, Plan

# The method for settings, such as a rank and a scale: make(settings, roles, name).
Make = Callable[[Hashable, Sequence[str], str], Method]
Roles = tuple[tuple[Hashable, tuple[str, ...]], ...]  # of one block, by settings


def plan_for(
    anatomy: Anatomy, wanted: Mapping[Site, Hashable], make: Make, *, name: str, norms: bool
) -> Plan:
    """The plan with the method ``make(settings, ...)`` on each site.

    Blocks that are equal become one group. Methods get the name ``name``, or where a block has
    several, ``name``, ``name_2``, ...

    Args:
        anatomy: of the model.
        wanted: the settings of each site.
        make: builds a method from settings, roles and a name.
        name: of the methods.
        norms: whether the plan trains all norms.

    Raises:
        ValueError: no plan extends these sites alone. A role such as ``ffn.in`` stands for all
            layers of a block that have it.
    """
    blocks: dict[tuple[str, int | None], Roles] = {}
    for place in dict.fromkeys((site.stack, site.block) for site in wanted):
        here = {s: key for s, key in wanted.items() if (s.stack, s.block) == place}
        settings = dict.fromkeys(here.values())
        blocks[place] = tuple(
            (key, tuple(dict.fromkeys(s.role for s in here if here[s] == key))) for key in settings
        )
    several = any(len(roles) > 1 for roles in blocks.values())
    order = list(dict.fromkeys(wanted.values()))
    names = {
        key: name if number == 0 or not several else f"{name}_{number + 1}"
        for number, key in enumerate(order)
    }
    groups = [
        Group([make(key, roles, names[key]) for key, roles in methods], numbers, stack)
        for methods, numbers, stack in _grouped(anatomy, blocks)
    ]
    plan = Plan(groups, norms)
    _refuse_other_sites(plan, anatomy, wanted)
    return plan


def _grouped(
    anatomy: Anatomy, blocks: Mapping[tuple[str, int | None], Roles]
) -> list[tuple[Roles, str | list[int], str | None]]:
    """Methods, numbers and stack of each group."""
    depth = {stack.name: len(stack.blocks) for stack in anatomy.stacks}
    found: dict[tuple[str, Roles], list[int]] = {}
    outer = []
    for (stack, block), roles in blocks.items():
        if block is None:
            outer.append((roles, "all", None))
        else:
            found.setdefault((stack, roles), []).append(block)
    groups: list[tuple[Roles, str | list[int], str | None]] = []
    for (stack, roles), numbers in found.items():
        whole = len(numbers) == depth[stack]
        only = None if len(depth) == 1 else stack
        groups.append((roles, "all" if whole else sorted(numbers), only))
    return [*groups, *outer]


def _refuse_other_sites(plan: Plan, anatomy: Anatomy, wanted: Mapping[Site, Hashable]) -> None:
    placed = [site for each in plan.place(anatomy) for site in each.sites]
    more = next((site for site in placed if site not in wanted), None)
    if more is not None:
        like = next(s for s in wanted if s.stack == more.stack and s.kind == more.kind)
        raise ValueError(
            f"the file extends {like.path} and not {more.path}: both are {more.kind!r} here, and a "
            "plan extends all of a block that are. Merge the adapter with PEFT's "
            "merge_and_unload(), or train one with both"
        )
