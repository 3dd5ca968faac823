"""Text to text with an encoder-decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.aggregation import MeanMetric
from transformers import AutoModelForSeq2SeqLM

from lightning_pelt.tasks._encoder_decoder import EncoderDecoderTask
from lightning_pelt.tasks._tokens import check_generation
from lightning_pelt.tasks.base import checked_metrics
from lightning_pelt.tasks.classification import CLASS_METRICS, class_metric
from lightning_pelt.tasks.regression import VALUE_METRICS

TEXT_METRICS = ("exact_match", *CLASS_METRICS, *VALUE_METRICS)


@dataclass(frozen=True)
class TextToText(EncoderDecoderTask):
    """A target text per row, predicted token by token.

    Metrics compare generated texts with target texts: as strings, as label names (a text that is
    not a label is wrong), or as numbers (a text that is not a number counts as -1, as in T5).
    ``perplexity`` under teacher forcing is always computed as well; it needs no generation.

    Args:
        metrics: names among exact_match; accuracy, f1, matthews, macro_f1 over label names;
            pearson, spearman, mse over numbers. The first one selects the best checkpoint.
        max_new_tokens: maximum number of tokens to generate.
        num_beams: number of beams; 1 is greedy search.
        generate_in_validation: False makes validation fast, and perplexity selects the best
            checkpoint. Tests and predictions always generate.

    Raises:
        ValueError: an unknown metric, or a number below 1.

    Example:
        >>> from lightning_pelt.tasks import TextToText
        >>> TextToText(metrics=("accuracy",)).monitor
        'accuracy'
        >>> TextToText(generate_in_validation=False).monitor
        'perplexity'
    """

    metrics: tuple[str, ...] = ("exact_match",)
    max_new_tokens: int = 32
    num_beams: int = 1
    generate_in_validation: bool = True

    auto: ClassVar[Any] = AutoModelForSeq2SeqLM

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_metrics(self.metrics, TEXT_METRICS))
        check_generation(self.max_new_tokens, self.num_beams)

    def build_metric(self, name: str, labels: Sequence[str] | None) -> Metric:
        """A metric of strings, of label names or of numbers.

        Raises:
            ValueError: the metric compares label names, and there are none.
        """
        if name == "exact_match":
            return MeanMetric()
        if name in VALUE_METRICS:
            return VALUE_METRICS[name]()
        if not labels:
            raise ValueError(
                f"metric {name!r} compares label names, but there are no labels: pass "
                "labels=[...], or use 'exact_match'"
            )
        return class_metric(name, labels)

    def compare(
        self,
        metrics: Mapping[str, Metric],
        guesses: Sequence[str],
        targets: Sequence[str],
        *,
        labels: Sequence[str] | None,
        device: torch.device,
    ) -> None:
        for name, metric in metrics.items():
            metric.update(*_metric_inputs(name, guesses, targets, labels, device))


def _metric_inputs(
    name: str,
    guesses: Sequence[str],
    targets: Sequence[str],
    labels: Sequence[str] | None,
    device: torch.device,
) -> tuple[Tensor, ...]:
    """The tensors to update metric ``name`` with: 0/1 matches, or guesses and targets."""
    if name == "exact_match":
        matches = [float(guess == target) for guess, target in zip(guesses, targets, strict=True)]
        return (torch.tensor(matches, device=device),)
    if name in VALUE_METRICS:
        sides = [[_number(text) for text in side] for side in (guesses, targets)]
    else:
        ids = {label: index for index, label in enumerate(labels or ())}
        sides = [[ids.get(text, len(ids)) for text in side] for side in (guesses, targets)]
    return tuple(torch.tensor(side, device=device) for side in sides)


def _number(text: str) -> float:
    """Convert ``text`` to a number, or -1 (T5's ``string_to_float``; Raffel et al., 2020)."""
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if isfinite(value) else -1.0
