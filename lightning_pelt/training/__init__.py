"""Training with Lightning: the module, its parameter groups, and the phases of a schedule."""

from lightning_pelt.training.module import PELTModule
from lightning_pelt.training.param_groups import named_groups
from lightning_pelt.training.phases import Phase
from lightning_pelt.training.tensor_parallel import split_base

__all__ = ["PELTModule", "Phase", "named_groups", "split_base"]
