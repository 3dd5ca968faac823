"""Dummy inputs: the smallest inputs that run a model, from what it says of itself.

A model states what it takes in the signature of its forward and in its configuration, and its first
layers state how wide that is. No family is known by its name.
"""

from lightning_pelt.anatomy.dummy_inputs.candidates import base_of
from lightning_pelt.anatomy.dummy_inputs.running import (
    INTERFACE,
    default_device,
    on,
    one_thread,
    rows_of,
    undisturbed,
)
from lightning_pelt.anatomy.dummy_inputs.trying import (
    cannot_be_examined,
    dummy_inputs,
    first_that_runs,
    tried_inputs,
)

__all__ = [
    "INTERFACE",
    "base_of",
    "cannot_be_examined",
    "default_device",
    "dummy_inputs",
    "first_that_runs",
    "on",
    "one_thread",
    "rows_of",
    "tried_inputs",
    "undisturbed",
]
