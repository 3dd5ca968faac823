"""Design spaces: which methods in which group of blocks, under one budget of parameters."""

from lightning_pelt.design_space.budget import Allotment, Sizing, Solution
from lightning_pelt.design_space.costs import Cost
from lightning_pelt.design_space.patterns import (
    PATTERNS,
    Block,
    Choice,
    choices,
    layout,
    rivals,
    sizes,
)
from lightning_pelt.design_space.plans import S4, Design, S4_3b

__all__ = [
    "PATTERNS",
    "S4",
    "Allotment",
    "Block",
    "Choice",
    "Cost",
    "Design",
    "S4_3b",
    "Sizing",
    "Solution",
    "choices",
    "layout",
    "rivals",
    "sizes",
]
