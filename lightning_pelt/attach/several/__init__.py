"""Several adapters on one model: named, switched, averaged, stacked, and mixed by rows."""

from lightning_pelt.attach.several.adapters import Adapters

__all__ = ["Adapters"]
