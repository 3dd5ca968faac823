"""Speech recognition with an encoder-decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.text import CharErrorRate, WordErrorRate
from transformers import AutoModelForSpeechSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from lightning_pelt.tasks._tokens import (
    Perplexity,
    check_generation,
    count,
    decode,
    generate,
)
from lightning_pelt.tasks.base import Batch, Task, checked_metrics, collection, model_inputs
from lightning_pelt.tasks.text_to_text import teacher_forced

SPEECH_METRICS: dict[str, type[Metric]] = {"wer": WordErrorRate, "cer": CharErrorRate}


@dataclass(frozen=True)
class SpeechRecognition(Task):
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
    decodes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_metrics(self.metrics, SPEECH_METRICS))
        check_generation(self.max_new_tokens, self.num_beams)

    @property
    def monitor(self) -> str:
        return self.metrics[0] if self.generate_in_validation else "perplexity"

    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        generated = self.metrics if stage != "val" or self.generate_in_validation else ()
        chosen: dict[str, Metric] = {name: SPEECH_METRICS[name]() for name in generated}
        return collection({**chosen, "perplexity": Perplexity()}, compute_groups=False)

    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        return teacher_forced(model, batch)

    def update(
        self,
        metrics: MetricCollection,
        model: PreTrainedModel,
        batch: Batch,
        outputs: Any,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        named = dict(metrics.items(keep_base=True, copy_state=False))
        named.pop("perplexity").update(outputs.loss, count(batch["labels"]))
        if not named:
            return
        same: Callable[[str], str] = BasicTextNormalizer() if self.normalise else str
        guesses = [same(text) for text in self._texts(model, batch, tokenizer)]
        targets = [same(text) for text in decode(tokenizer, batch["labels"])]
        for metric in named.values():
            metric.update(guesses, targets)

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """``{"text": words}`` per row."""
        return [{"text": text} for text in self._texts(model, batch, tokenizer)]

    def _texts(
        self, model: PreTrainedModel, batch: Batch, tokenizer: PreTrainedTokenizerBase | None
    ) -> list[str]:
        # Whisper's own configuration sets max_length, which would come with a warning per batch.
        options: dict[str, Any] = {"max_length": None}
        if self.language is not None:
            options |= {"language": self.language, "task": "transcribe"}
        ids = generate(
            model,
            tokenizer,
            model_inputs(batch),
            max_new_tokens=self.max_new_tokens,
            num_beams=self.num_beams,
            **options,
        )
        return decode(tokenizer, ids)
