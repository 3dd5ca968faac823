"""Designs that the found design is compared with, by their names in a recipe."""

from __future__ import annotations

from lightning_pelt.plans.design_space import S4, Design
from lightning_pelt.plans.design_space.strategies import STRATEGIES
from lightning_pelt.utils.errors import unknown


def reference_design(name: str, budget: float) -> Design:
    """The design that ``compare`` names: letters of methods for every block, or ``S4``.

    Raises:
        ValueError: the name is unknown.
    """
    if name == "S4":
        return S4(budget)
    for letter in name:
        if letter not in STRATEGIES:
            raise unknown("plan to compare with", name, [*STRATEGIES, "S4"])
    return Design([name], budget=budget, pattern="uniform")
