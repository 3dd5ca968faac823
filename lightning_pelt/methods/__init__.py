"""Tuning methods, one file each."""

from lightning_pelt.methods.adapter import Adapter
from lightning_pelt.methods.bitfit import BitFit
from lightning_pelt.methods.ia3 import IA3
from lightning_pelt.methods.lora import LoRA
from lightning_pelt.methods.prefix import Prefix

__all__ = ["IA3", "Adapter", "BitFit", "LoRA", "Prefix"]
