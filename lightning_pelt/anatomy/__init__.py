"""Where things can be attached. Outside this package nobody knows a Hugging Face attribute name."""

from lightning_pelt.anatomy.discover import examine
from lightning_pelt.anatomy.recording import base_of
from lightning_pelt.anatomy.site import Anatomy, Heads, MaskArgument, PostNorm, Site, Source, Stack

__all__ = [
    "Anatomy",
    "Heads",
    "MaskArgument",
    "PostNorm",
    "Site",
    "Source",
    "Stack",
    "base_of",
    "examine",
]
