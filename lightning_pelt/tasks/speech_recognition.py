"""Speech recognition with an encoder-decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torchmetrics import Metric
from torchmetrics.text import CharErrorRate, WordErrorRate
from transformers import AutoModelForSpeechSeq2Seq
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from lightning_pelt.tasks._encoder_decoder import EncoderDecoderTask
from lightning_pelt.tasks._tokens import check_generation
from lightning_pelt.tasks.base import checked_metrics

SPEECH_METRICS: dict[str, type[Metric]] = {"wer": WordErrorRate, "cer": CharErrorRate}


@dataclass(frozen=True)
class SpeechRecognition(EncoderDecoderTask):
    """The words of a sound, predicted token by token with an encoder-decoder such as Whisper.

    Metrics compare generated words with the target: errors (substitutions, deletions, insertions)
    divided by the number of words, or of characters, of all targets. ``perplexity`` under teacher
    forcing is always computed as well; it needs no generation.

    Args:
        metrics: names among wer, cer. The first one selects the best checkpoint.
        language: of the words, for multilingual backbones ("english"); by default the model
            recognises the language of each sound.
        normalise: compare words in lower case without punctuation, as the Whisper paper's basic
            normaliser writes them (Radford et al., 2022, appendix C). Predictions are not changed.
        max_new_tokens: maximum number of tokens to generate.
        num_beams: number of beams; 1 is greedy search.
        generate_in_validation: False makes validation fast, and perplexity selects the best
            checkpoint. Tests and predictions always generate.

    Raises:
        ValueError: an unknown metric, or a number below 1.

    Example:
        >>> from lightning_pelt import SpeechRecognition
        >>> task = SpeechRecognition(language="english")
        >>> task.monitor, task.mode
        ('wer', 'min')
    """

    metrics: tuple[str, ...] = ("wer",)
    language: str | None = None
    normalise: bool = True
    max_new_tokens: int = 128
    num_beams: int = 1
    generate_in_validation: bool = True

    auto: ClassVar[Any] = AutoModelForSpeechSeq2Seq
    reads_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_metrics(self.metrics, SPEECH_METRICS))
        check_generation(self.max_new_tokens, self.num_beams)

    def build_metric(self, name: str, labels: Sequence[str] | None) -> Metric:
        """A metric of words or of characters."""
        return SPEECH_METRICS[name]()

    def compare(
        self,
        metrics: Mapping[str, Metric],
        guesses: Sequence[str],
        targets: Sequence[str],
        *,
        labels: Sequence[str] | None,
        device: torch.device,
    ) -> None:
        same: Callable[[str], str] = BasicTextNormalizer() if self.normalise else str
        for metric in metrics.values():
            metric.update([*map(same, guesses)], [*map(same, targets)])

    def generation(self) -> dict[str, Any]:
        """The language, for multilingual models."""
        # Whisper's own configuration sets max_length, which would come with a warning per batch.
        options: dict[str, Any] = {"max_length": None}
        if self.language is not None:
            options |= {"language": self.language, "task": "transcribe"}
        return options
