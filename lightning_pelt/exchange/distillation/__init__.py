"""Distillation: a LoRA that does what any plan does."""

from lightning_pelt.exchange.distillation.distil import Distilled, Report, distil_lora

__all__ = ["Distilled", "Report", "distil_lora"]
