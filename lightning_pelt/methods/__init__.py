"""Tuning methods, one file each."""

from lightning_pelt.methods.adapter import Adapter
from lightning_pelt.methods.bitfit import BitFit
from lightning_pelt.methods.compacter import Compacter
from lightning_pelt.methods.ia3 import IA3
from lightning_pelt.methods.lora import LoRA
from lightning_pelt.methods.low_rank_adapter import LowRankAdapter
from lightning_pelt.methods.miss import MiSS
from lightning_pelt.methods.new_tokens import NewTokens
from lightning_pelt.methods.prefix import Prefix
from lightning_pelt.methods.prompt import Prompt
from lightning_pelt.methods.xpeft import XPEFT

__all__ = [
    "IA3",
    "XPEFT",
    "Adapter",
    "BitFit",
    "Compacter",
    "LoRA",
    "LowRankAdapter",
    "MiSS",
    "NewTokens",
    "Prefix",
    "Prompt",
]
