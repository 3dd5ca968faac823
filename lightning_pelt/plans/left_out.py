"""Blocks that a method of a plan leaves out, since they have no site for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.plans.plan import Placed, Plan

log = logging.getLogger(__name__)


def log_left_out(plan: Plan, anatomy: Anatomy, placed: Sequence[Placed]) -> None:
    """Warn of the blocks of each group in which a method has no site while it has some elsewhere.

    Such as the Mamba blocks of a hybrid without attention, for LoRA, or the blocks with experts,
    for ``ffn.in`` and ``ffn.out``. And of layers that did not run when the model was examined.
    """
    if anatomy.idle and placed:
        log.warning(
            "nothing is attached to %s of %s, which did not run when the model was examined: give "
            "example_inputs that it reads",
            *(", ".join(anatomy.idle), anatomy.model_type),
        )
    groups = plan.resolved(anatomy).groups
    for group, method, sites in placed:
        reached = {(site.stack, site.block) for site in sites}
        if {block for _, block in reached} == {None}:  # outside the blocks alone
            continue
        of, texts, count = groups[group], [], 0
        for each in anatomy.stacks:
            numbers = of.numbers(len(each.blocks)) if of.stack in (None, each.name) else []
            missing = [number for number in numbers if (each.name, number) not in reached]
            if missing and not _is_cross_only(sites):
                count += len(missing)
                all_of = " (all of them)" if len(missing) == len(numbers) > 1 else ""
                texts.append(f"{ranges(missing)} of the {each.name}{all_of}")
        if texts:
            roles = ", ".join(dict.fromkeys(site.role for site in sites))
            log.warning(
                "%s leaves out %s %s, which %s no site of its kind (%s)",
                *(method.name, "block" if count == 1 else "the blocks", "; ".join(texts)),
                *("has" if count == 1 else "have", roles),
            )


def _is_cross_only(sites: Sequence[Site]) -> bool:
    """Whether a method sits at cross-attentions alone, which an encoder does not have."""
    return all(site.kind.startswith("cross_attention") for site in sites)


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers in short.

    Example:
        >>> ranges([0, 1, 2, 4, 6, 7])
        '0-2, 4, 6-7'
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
