"""Multiple choice: which of several texts answers a question or continues a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.aggregation import MeanMetric
from transformers import AutoModelForMultipleChoice, PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.data._several_texts import TOKENS
from lightning_pelt.tasks._several_texts import flat_inputs, present, unflatten
from lightning_pelt.tasks.base import Batch, Task, checked_metrics, collection

MOST_CHOICES = 128
METRICS = ("accuracy", "macro_accuracy")


class AccuracyByPlace(Metric):
    """The mean, over the places of right choices, of the share of rows that are answered right.

    A model that always takes the first of four choices has 0.25, also if the first is often right.
    scikit-learn calls it ``balanced_accuracy_score``.
    """

    higher_is_better = True
    full_state_update = False
    right: Tensor
    rows: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "rows"):
            self.add_state(name, torch.zeros(MOST_CHOICES), dist_reduce_fx="sum")

    def update(self, choices: Tensor, answers: Tensor) -> None:
        """Add the ``choices`` (B,) of the model and the right ``answers`` (B,).

        Raises:
            ValueError: an answer is beyond the first 128 choices.
        """
        if answers.numel() and int(answers.max()) >= MOST_CHOICES:
            raise ValueError(
                f"macro_accuracy counts at most {MOST_CHOICES} choices, and choice "
                f"{int(answers.max()) + 1} is the answer of a row: use accuracy"
            )
        self.right += torch.bincount(answers[choices == answers], minlength=MOST_CHOICES)
        self.rows += torch.bincount(answers, minlength=MOST_CHOICES)

    def compute(self) -> Tensor:
        found = self.rows > 0
        return (self.right[found] / self.rows[found]).mean()


@dataclass(frozen=True)
class MultipleChoice(Task):
    """One right choice of several; see :class:`~lightning_pelt.data.TextChoices` for the rows.

    The model scores each choice by itself, and the loss is the cross-entropy of the scores of a
    row. Rows may have different numbers of choices: only those that exist are computed.

    Args:
        metrics: names among accuracy; macro_accuracy (mean over the places of the right choice, so
            that a model that always takes one place has no advantage). The first one selects the
            best checkpoint.

    Raises:
        ValueError: an unknown metric.

    Example:
        >>> from lightning_pelt import MultipleChoice
        >>> MultipleChoice().monitor
        'accuracy'
    """

    metrics: tuple[str, ...] = ("accuracy",)

    auto: ClassVar[Any] = AutoModelForMultipleChoice

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_metrics(self.metrics, METRICS))

    @property
    def monitor(self) -> str:
        return self.metrics[0]

    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        build = {"accuracy": MeanMetric, "macro_accuracy": AccuracyByPlace}
        return collection({name: build[name]() for name in self.metrics}, compute_groups=False)

    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        outputs = _scored(model, batch)
        return F.cross_entropy(outputs.logits, batch["labels"]), outputs

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
        best, answers = outputs.logits.argmax(-1), batch["labels"]
        for name, metric in metrics.items(keep_base=True, copy_state=False):
            if name == "accuracy":
                metric.update((best == answers).float())
            else:
                metric.update(best, answers)

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """``{"choice": text, "index": place, "probabilities": [...]}`` per row.

        The index of the first choice is 0. Without the texts of the ``choices`` in the batch there
        is no text.
        """
        probabilities = _scored(model, batch).logits.softmax(-1)
        best, counts = probabilities.argmax(-1).tolist(), present(batch).sum(-1).tolist()
        rows = [
            {"index": index, "probabilities": row[:count]}
            for index, count, row in zip(best, counts, probabilities.tolist(), strict=True)
        ]
        texts = batch.get("choices")
        if texts is None:
            return rows
        return [{"choice": t[row["index"]], **row} for t, row in zip(texts, rows, strict=True)]


def _scored(model: PreTrainedModel, batch: Batch) -> Any:
    """The outputs of the model, with ``logits`` (B, C) in fp32: -inf for choices that are missing.

    The model gets the choices as rows (N, 1, T).
    """
    inputs = {
        name: value[:, None] if name in TOKENS else value
        for name, value in flat_inputs(batch).items()
    }
    outputs = model(**inputs)
    scores = outputs.logits.float()[:, 0]
    outputs.logits = unflatten(scores, present(batch), float("-inf"))
    return outputs
