"""One label per sound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import AutoModelForAudioClassification

from lightning_pelt.tasks.classification import Classification


@dataclass(frozen=True)
class AudioClassification(Classification):
    """One label per sound, trained with the cross-entropy.

    Args:
        metrics: see :class:`Classification`.
        label_smoothing: likewise.

    Example:
        >>> from lightning_pelt import AudioClassification
        >>> AudioClassification().monitor
        'accuracy'
    """

    auto: ClassVar[Any] = AutoModelForAudioClassification
    reads_text: ClassVar[bool] = False
