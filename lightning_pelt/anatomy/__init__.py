"""Anatomy: where submodules can be attached to a Hugging Face model.

No other package of the library reads attribute names of Hugging Face models.
"""

from lightning_pelt.anatomy.discovery import examine
from lightning_pelt.anatomy.dummy_inputs import (
    base_of,
    default_device,
    tried_inputs,
    undisturbed,
)
from lightning_pelt.anatomy.experts import grouped, run_experts
from lightning_pelt.anatomy.initialising import initialise
from lightning_pelt.anatomy.sites import (
    OUTPUT,
    Anatomy,
    AttentionHeads,
    MaskArgument,
    PostNorm,
    Residual,
    Site,
    Source,
    Stack,
)
from lightning_pelt.anatomy.stand_ins import StandIns, is_without_values

__all__ = [
    "OUTPUT",
    "Anatomy",
    "AttentionHeads",
    "MaskArgument",
    "PostNorm",
    "Residual",
    "Site",
    "Source",
    "Stack",
    "StandIns",
    "base_of",
    "default_device",
    "examine",
    "grouped",
    "initialise",
    "is_without_values",
    "run_experts",
    "tried_inputs",
    "undisturbed",
]
