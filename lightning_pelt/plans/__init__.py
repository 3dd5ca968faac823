"""Plans: which methods go into which blocks."""

from lightning_pelt.plans.papers import FullFineTuning, HeadOnly, UniPELT
from lightning_pelt.plans.plan import Group, Placed, Plan, from_config

__all__ = ["FullFineTuning", "Group", "HeadOnly", "Placed", "Plan", "UniPELT", "from_config"]
