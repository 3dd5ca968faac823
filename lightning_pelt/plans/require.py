"""The error for what is given instead of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from lightning_pelt.methods.base import Method
from lightning_pelt.plans.plan import Group, Plan

USUAL = "give one such as UniPELT() or Plan.uniform(LoRA())"


def require_plan(given: object) -> Plan:
    """``given``, if it is a plan.

    Raises:
        ValueError: it is a class, a method, a name or something else; the message says what to
            write instead.
    """
    if isinstance(given, Plan):
        return given
    kind = f"the class {given.__name__}" if isinstance(given, type) else repr(given)
    raise ValueError(f"plan is {kind}, expected a plan: {_remedy(given)}")


def _remedy(given: Any) -> str:
    if isinstance(given, type):
        return f"write {_call(given)}" if issubclass(given, (Plan, Method)) else USUAL
    if isinstance(given, Method):
        return f"write Plan.uniform({given!r})"
    if isinstance(given, Group):
        return "write Plan([group])"
    if isinstance(given, str):
        classes = {cls.__name__.lower(): cls for base in (Plan, Method) for cls in _kinds(base)}
        nearest = get_close_matches(given.lower(), classes, n=1, cutoff=0.6)
        return f"write {_call(classes[nearest[0]])}" if nearest else USUAL
    if isinstance(given, Mapping):
        return "rebuild it from its configuration with lightning_pelt.plans.from_config(...)"
    if isinstance(given, Sequence) and given and all(isinstance(item, Method) for item in given):
        return "write Plan.uniform(*methods)"
    if isinstance(given, Sequence) and given and all(isinstance(item, Group) for item in given):
        return "write Plan(groups)"
    return USUAL


def _call(cls: type) -> str:
    """The expression that makes a plan of a class of plans or methods."""
    if cls is Plan or cls is Method:
        return "Plan.uniform(LoRA())"
    return f"{cls.__name__}()" if issubclass(cls, Plan) else f"Plan.uniform({cls.__name__}())"


def _kinds(base: type) -> Iterator[type]:
    found: list[type] = base.__subclasses__()
    for cls in found:
        yield cls
        yield from _kinds(cls)
