"""Design spaces: methods for groups of blocks under one budget of parameters."""

from lightning_pelt.methods.base import Cost
from lightning_pelt.plans.design_space.budget import Sizing
from lightning_pelt.plans.design_space.design import S4, Design, S4_3b
from lightning_pelt.plans.design_space.patterns import (
    PATTERNS,
    Block,
    Grouping,
    distinct_groupings,
    group_sizes,
    groupings_to_compare,
    layout,
)
from lightning_pelt.plans.design_space.solution import Allotment, Solution

__all__ = [
    "PATTERNS",
    "S4",
    "Allotment",
    "Block",
    "Cost",
    "Design",
    "Grouping",
    "S4_3b",
    "Sizing",
    "Solution",
    "distinct_groupings",
    "group_sizes",
    "groupings_to_compare",
    "layout",
]
