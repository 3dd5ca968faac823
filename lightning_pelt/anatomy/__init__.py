"""Anatomy: where submodules can be attached to a Hugging Face model.

No other package of the library reads attribute names of Hugging Face models.
"""

from lightning_pelt.anatomy.discovery import examine
from lightning_pelt.anatomy.dummy_inputs import base_of, tried_inputs, undisturbed
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
    "base_of",
    "examine",
    "tried_inputs",
    "undisturbed",
]
