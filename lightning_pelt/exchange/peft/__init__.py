"""PEFT's format of adapters: ``save_peft`` and ``load_peft``.

The files follow PEFT 0.21.2, which is not imported.
"""

from lightning_pelt.exchange.peft.reading import load_peft
from lightning_pelt.exchange.peft.writing import save_peft

__all__ = ["load_peft", "save_peft"]
