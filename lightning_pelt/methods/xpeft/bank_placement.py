"""The placement of a bank's adapters on a model: where they were trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.methods._sublayer_hooks import Placement, resolve, sublayers
from lightning_pelt.methods.xpeft.bank import HUB, BankTensors


def follow(placement: Placement, bank: BankTensors) -> Placement:
    """The placement of the adapters of ``bank``, which ``auto`` leaves to the bank."""
    return "pfeiffer" if placement == "auto" and bank.placements - {"auto"} else placement


def refuse_other_placement(
    anatomy: Anatomy, sites: Sequence[Site], placement: Placement, bank: BankTensors
) -> None:
    """Compare where adapters were trained with where they are to be applied.

    Args:
        anatomy: of the model.
        sites: to which the bank is applied.
        placement: as the method has it.
        bank: of the method. Nothing is compared if it does not say where it was trained.

    Raises:
        ValueError: they differ, or the model has no such placement.
    """
    if not bank.placements:
        return
    sublayers(anatomy, [site.role for site in sites], follow(placement, bank))
    if HUB in bank.placements:
        _refuse_parallel_residuals(anatomy, sites)
    here = [resolve(follow(placement, bank), site) for site in sites]
    for trained in sorted(bank.placements):
        named = cast("Placement", "pfeiffer" if trained == HUB else trained)
        there = [resolve(named, site) for site in sites]
        if there != here:
            remedy = (
                "XPEFT(placement='auto') follows the bank"
                if placement != "auto"
                else "make one bank of each kind"
            )
            raise ValueError(
                f"the bank has adapters with placement={trained!r}, which on {anatomy.model_type} "
                f"is {there[0]!r}, and XPEFT would apply them as {here[0]!r}: {remedy}"
            )


def _refuse_parallel_residuals(anatomy: Anatomy, sites: Sequence[Site]) -> None:
    """Raise where attention and feed-forward read one residual, as in GPT-J.

    AdapterHub's feed-forward adapters read the sum of both sublayers there.
    """
    attentions = {(s.stack, s.block): s for s in anatomy.sites if s.role == "attention.output"}
    for site in sites:
        attention = attentions.get((site.stack, site.block))
        if attention is None or site.residual is None or attention.residual is None:
            continue
        if site.residual.source == attention.residual.source:
            raise ValueError(
                f"the bank has adapters of AdapterHub, which read the sum of attention and "
                f"feed-forward on models with parallel residuals, and {anatomy.model_type} is one: "
                "no placement does so. Train the adapters of the bank with Adapter()"
            )
