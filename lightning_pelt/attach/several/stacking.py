"""Stacks: several adapters that act one after another, as the methods of one plan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lightning_pelt.attach.several.changes import TENSORS
from lightning_pelt.attach.several.entry import Entry
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.gate import GateView
from lightning_pelt.plans.plan import Group, Plan


def stacked_plan(entries: Mapping[str, Entry]) -> Plan:
    """One plan with the methods of all adapters, in their order, under names that start with them.

    Raises:
        ValueError: two adapters have plans that train the norms, or the file of one holds tensors
            of the base.
    """
    groups: list[Group] = []
    for name, entry in entries.items():
        changed = sorted(entry.attachment.frozen.values_before.keys() & entry.attachment.base)
        if changed:
            raise ValueError(
                f"{name!r} has its own {changed[0]}, a tensor of the base, and a stack has the "
                "base's: it computes something else in a stack"
            )
    norms = [name for name, entry in entries.items() if entry.attachment.plan.norms]
    if len(norms) > 1:
        raise ValueError(
            f"{norms[0]!r} and {norms[1]!r} both train the norms of the model, which has them once"
        )
    for name, entry in entries.items():
        attachment = entry.attachment
        for group in attachment.plan.resolved(attachment.anatomy).groups:
            methods = [_renamed(method, name) for method in group.methods]
            groups.append(replace(group, methods=methods))
    return Plan(groups, norms=bool(norms))


def _renamed(method: Any, adapter: str) -> Method:
    """The method, which is a dataclass, under its name in a stack."""
    renamed: Method = replace(method, name=prefixed(adapter, method.name))
    return renamed


def labels_of(entry: Entry) -> list[str] | None:
    """The labels of a head of its own; None for a head like the model's."""
    config = next((c.on for c in entry.changes if not c.table and c.key == "config"), None)
    return None if config is None else [config.id2label[i] for i in sorted(config.id2label)]


def head_of(entry: Entry) -> list[str]:
    """Paths of the modules of its head."""
    return sorted({name.rpartition(".")[0] for name in entry.attachment.head})


def prefixed(name: str, method: str) -> str:
    """The name of a method of the adapter ``name`` in a stack.

    Example:
        >>> prefixed("sst-2", "lora")
        'sst_2_lora'
    """
    return f"{re.sub(r'[^0-9A-Za-z_]', '_', name)}_{method}"


def share(stack: Entry, entries: Mapping[str, Entry]) -> None:
    """Make a stack, which is off the model, compute with the weights of its adapters themselves.

    Head and statistics are those of the last adapter, and trained norms those of their adapter.
    """
    for name, entry in entries.items():
        for method, modules in entry.attachment.submodules.items():
            targets = stack.attachment.submodules[prefixed(name, method)]
            for target, module in zip(targets, modules, strict=True):
                _share_tensors(target, module)
            views = _views(stack, prefixed(name, method))
            for view, theirs in zip(views, _views(entry, method), strict=True):
                _share_gate(view, theirs)
    last = list(entries.values())[-1]
    order = [last, *(e for e in entries.values() if e.attachment.plan.norms and e is not last)]
    own = {
        (c.module, c.table, c.key): c.on for entry in order for c in [*entry.slots, *entry.layers]
    }
    for change in [*stack.slots, *stack.layers]:
        change.on = own.get((change.module, change.table, change.key), change.on)


def _share_tensors(target: nn.Module, module: nn.Module) -> None:
    for one, other in zip(target.modules(), module.modules(), strict=True):
        for table in TENSORS:
            one.__dict__[table].update(other.__dict__[table])


def _views(entry: Entry, method: str) -> Sequence[GateView]:
    return [view for view in entry.attachment.gates.values() if view.method == method]


def _share_gate(view: GateView, own: GateView) -> None:
    for mine, theirs in zip(view.parameters(), own.parameters(), strict=True):
        name = next(key for key, value in view.layer._parameters.items() if value is mine)
        view.layer._parameters[name] = theirs
    view.set_open(own.open)
