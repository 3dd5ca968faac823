"""Classification of texts and pairs of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
)
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_pelt.tasks._labels import check_same_labels, label_head, require_labels
from lightning_pelt.tasks.base import Batch, Task, checked_metrics, collection, model_inputs

CLASS_METRICS = ("accuracy", "f1", "matthews", "macro_f1")


class PositiveF1(MulticlassF1Score):
    """F1 of class 1 against all others, as GLUE scores MRPC and QQP."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average=None)

    def compute(self) -> Tensor:
        return super().compute()[1]


def class_metric(name: str, labels: Sequence[str]) -> Metric:
    """The metric ``name`` over class ids, where id ``len(labels)`` is "none of the labels".

    If the extra id never occurs, it does not change a metric (macro F1 skips such classes). It also
    avoids the two-class path of torchmetrics for Matthews, which returns 0.13 for a constant guess
    on a 6:4 split; by convention the coefficient is 0.

    Raises:
        ValueError: the name is ``"f1"`` and there are not exactly two labels.
    """
    size = len(labels) + 1
    if name == "accuracy":
        return MulticlassAccuracy(size, average="micro")
    if name == "matthews":
        return MulticlassMatthewsCorrCoef(size)
    if name == "macro_f1":
        return MulticlassF1Score(size, average="macro")
    if len(labels) != 2:
        raise ValueError(
            f"metric 'f1' scores the second of two labels, but there are {len(labels)}: "
            "use 'macro_f1'"
        )
    return PositiveF1(size)


@dataclass(frozen=True)
class Classification(Task):
    """One label per row.

    Args:
        metrics: names among accuracy, f1 (of the second of two labels), matthews, macro_f1. The
            first one selects the best checkpoint.
        label_smoothing: share of the target, from 0 to 1, that is spread evenly over all labels, in
            training and in the evaluation loss.

    Raises:
        ValueError: an unknown metric, or a ``label_smoothing`` outside [0, 1].

    Example:
        >>> from lightning_pelt import Classification
        >>> task = Classification(metrics=("matthews", "accuracy"))
        >>> task.monitor, task.mode
        ('matthews', 'max')
    """

    metrics: tuple[str, ...] = ("accuracy",)
    label_smoothing: float = 0.0

    auto: ClassVar[Any] = AutoModelForSequenceClassification

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_metrics(self.metrics, CLASS_METRICS))
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing must be from 0 to 1, not {self.label_smoothing}")

    @property
    def monitor(self) -> str:
        return self.metrics[0]

    def head(self, labels: Sequence[str] | None) -> dict[str, Any]:
        names = require_labels(labels)
        if len(names) == 1:
            rank_zero_warn(
                f"there is one label, {names[0]!r}: every prediction is right, the loss is 0, and "
                "nothing is learned"
            )
        return {**label_head(names), "problem_type": "single_label_classification"}

    def check_labels(self, labels: Sequence[str] | None, of_data: Sequence[str] | None) -> None:
        check_same_labels(labels, of_data)

    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        return collection(
            {name: class_metric(name, require_labels(labels)) for name in self.metrics}
        )

    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**model_inputs(batch))
        loss = F.cross_entropy(
            outputs.logits.float(), batch["labels"], label_smoothing=self.label_smoothing
        )
        return loss, outputs

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
        metrics.update(outputs.logits.argmax(-1), batch["labels"])

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """``{"label": name, "probabilities": {name: probability}}`` per row.

        Without ``labels`` the names come from the configuration of the model.
        """
        probabilities = model(**model_inputs(batch)).logits.float().softmax(-1)  # (B, labels)
        id2label: Any = model.config.id2label
        names = labels or [id2label[i] for i in range(probabilities.shape[-1])]
        best = probabilities.argmax(-1).tolist()
        return [
            {"label": names[top], "probabilities": dict(zip(names, row, strict=True))}
            for top, row in zip(best, probabilities.tolist(), strict=True)
        ]
