"""Regression: a number per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.regression import MeanSquaredError, PearsonCorrCoef, SpearmanCorrCoef
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_pelt.tasks.base import Batch, Task, checked_metrics, collection, model_inputs

VALUE_METRICS: dict[str, type[Metric]] = {
    "pearson": PearsonCorrCoef,
    "spearman": SpearmanCorrCoef,
    "mse": MeanSquaredError,
}


@dataclass(frozen=True)
class Regression(Task):
    """A number per row, trained with the squared error.

    Correlations are NaN if predictions or targets are constant, also for a single row.

    Args:
        metrics: names among pearson, spearman, mse. The first one selects the best checkpoint.

    Raises:
        ValueError: an unknown metric.

    Example:
        >>> from lightning_pelt import Regression
        >>> task = Regression(metrics=("mse", "pearson"))
        >>> task.monitor, task.mode
        ('mse', 'min')
    """

    metrics: tuple[str, ...] = ("spearman", "pearson")

    auto: ClassVar[Any] = AutoModelForSequenceClassification

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_metrics(self.metrics, VALUE_METRICS))

    @property
    def monitor(self) -> str:
        return self.metrics[0]

    def head(self, labels: Sequence[str] | None) -> dict[str, Any]:
        _refuse_labels(labels)
        return {"num_labels": 1, "problem_type": "regression"}

    def check_labels(self, labels: Sequence[str] | None, of_data: Sequence[str] | None) -> None:
        _refuse_labels(labels)
        _refuse_labels(of_data)

    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        return collection({name: VALUE_METRICS[name]() for name in self.metrics})

    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**model_inputs(batch))
        return F.mse_loss(_values(outputs), batch["labels"].float()), outputs

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
        metrics.update(_values(outputs), batch["labels"].float())

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """``{"value": number}`` per row."""
        return [{"value": value} for value in _values(model(**model_inputs(batch))).tolist()]


def _refuse_labels(labels: Sequence[str] | None) -> None:
    """Raise if targets are classes: their indices would be taken for numbers.

    Raises:
        ValueError: there are labels.
    """
    if labels is not None:
        shown = ", ".join(map(repr, labels[:5])) + (", ..." if len(labels) > 5 else "")
        raise ValueError(
            f"Regression predicts numbers, and the data has the labels {shown}: read the column as "
            "numbers, as TextClassification(task='regression') does, or use Classification"
        )


def _values(outputs: Any) -> Tensor:
    """(B, 1) logits -> (B,) in fp32. Only the last dimension is squeezed, in case B is 1."""
    return outputs.logits.float().squeeze(-1)
