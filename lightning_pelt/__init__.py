"""Gated parameter-efficient tuning of Hugging Face transformers for PyTorch Lightning."""

from typing import TYPE_CHECKING, Any

from lightning_pelt.attach import Attachment, attach, detach
from lightning_pelt.design_space import S4, Design, S4_3b
from lightning_pelt.exchange import load_adapters, merge, save_adapters
from lightning_pelt.gate import Gate
from lightning_pelt.methods import (
    IA3,
    XPEFT,
    Adapter,
    BitFit,
    Compacter,
    LoRA,
    LowRankAdapter,
    Prefix,
    Prompt,
)
from lightning_pelt.plan import FullFineTuning, Group, HeadOnly, Plan, UniPELT
from lightning_pelt.profiles.bank import RandomBank, TrainedBank

if TYPE_CHECKING:
    from lightning_pelt.callbacks import GateMonitor, GateSchedule, ParameterCount, PELTCallback
    from lightning_pelt.module import PELTModule

__all__ = [
    "IA3",
    "S4",
    "XPEFT",
    "Adapter",
    "Attachment",
    "BitFit",
    "Compacter",
    "Design",
    "FullFineTuning",
    "Gate",
    "GateMonitor",
    "GateSchedule",
    "Group",
    "HeadOnly",
    "LoRA",
    "LowRankAdapter",
    "PELTCallback",
    "PELTModule",
    "ParameterCount",
    "Plan",
    "Prefix",
    "Prompt",
    "RandomBank",
    "S4_3b",
    "TrainedBank",
    "UniPELT",
    "attach",
    "detach",
    "load_adapters",
    "merge",
    "save_adapters",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The names that need Lightning, which a plain ``attach`` does not wait for."""
    if name == "PELTModule":
        from lightning_pelt.module import PELTModule

        return PELTModule
    if name in __all__:
        from lightning_pelt import callbacks

        return getattr(callbacks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
