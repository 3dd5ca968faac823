"""One label per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForImageClassification

from lightning_pelt.tasks.classification import Classification


@dataclass(frozen=True)
class ImageClassification(Classification):
    """One label per image, trained with the cross-entropy.

    Args:
        metrics: see :class:`Classification`.
        label_smoothing: likewise.

    Example:
        >>> from lightning_pelt import ImageClassification
        >>> ImageClassification(metrics=("macro_f1",)).monitor
        'macro_f1'
    """

    auto: ClassVar[Any] = AutoModelForImageClassification
    reads_text: ClassVar[bool] = False
