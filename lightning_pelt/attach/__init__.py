"""Changes models: attaches plans, saves and loads what is attached, merges it, and detaches."""

from lightning_pelt.attach.adapter_files import load_adapters
from lightning_pelt.attach.attach import attach, detach, find_model
from lightning_pelt.attach.attachment import (
    NORM,
    Attachment,
    attachment_of,
    find_attachment,
    find_attachments,
)
from lightning_pelt.attach.builder import CHILD, MethodCount
from lightning_pelt.attach.merging import merge
from lightning_pelt.attach.packing import check_packing
from lightning_pelt.attach.quantising import quantise
from lightning_pelt.attach.saving import save_adapters
from lightning_pelt.attach.several import Adapters

__all__ = [
    "CHILD",
    "NORM",
    "Adapters",
    "Attachment",
    "MethodCount",
    "attach",
    "attachment_of",
    "check_packing",
    "detach",
    "find_attachment",
    "find_attachments",
    "find_model",
    "load_adapters",
    "merge",
    "quantise",
    "save_adapters",
]
