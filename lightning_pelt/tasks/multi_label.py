"""Any number of labels per text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MultilabelAUROC,
    MultilabelAveragePrecision,
    MultilabelExactMatch,
    MultilabelF1Score,
)
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities import dim_zero_cat
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_pelt.tasks._labels import check_same_labels, label_head, require_labels
from lightning_pelt.tasks.base import Batch, Task, checked_metrics, collection, model_inputs

SET_METRICS = ("micro_f1", "macro_f1", "subset_accuracy", "map", "auroc")


class PresentAveragePrecision(MultilabelAveragePrecision):
    """Mean average precision over the labels that a row has; torchmetrics counts others as 0."""

    def compute(self) -> Tensor:  # type: ignore[override]
        return _over_present(self, binary_average_precision, both=False)


class PresentAUROC(MultilabelAUROC):
    """Mean AUROC over the labels that some rows have and others do not."""

    def compute(self) -> Tensor:  # type: ignore[override]
        return _over_present(self, binary_auroc, both=True)


def _over_present(metric: Any, score: Callable[..., Tensor], *, both: bool) -> Tensor:
    """The mean of ``score`` over labels with a right row and, if ``both``, a wrong one; or 0."""
    shares, true = dim_zero_cat(metric.preds), dim_zero_cat(metric.target)  # (rows, labels)
    right = true.sum(0)
    present = (right > 0) & ((right < len(true)) if both else True)
    scores = [score(shares[:, i], true[:, i]) for i in present.nonzero().flatten().tolist()]
    return torch.stack(scores).mean() if scores else shares.new_zeros(())


@dataclass(frozen=True)
class MultiLabel(Task):
    """A set of labels per row, each decided by itself, trained with the binary cross-entropy.

    The rows are those of :class:`~lightning_pelt.data.MultiLabelText`.

    Args:
        metrics: names among micro_f1 (of all decisions together); macro_f1 (mean over labels);
            subset_accuracy (rows whose set is right); map (mean average precision over labels);
            auroc (mean over labels). map and auroc do not depend on ``threshold``, and leave out
            labels that no row has; auroc also those that every row has. The first one selects the
            best checkpoint.
        threshold: a label is predicted if its probability is higher.

    Raises:
        ValueError: an unknown metric, or a ``threshold`` that is not between 0 and 1.

    Example:
        >>> from lightning_pelt import MultiLabel
        >>> MultiLabel(metrics=("map", "micro_f1"), threshold=0.3).monitor
        'map'
    """

    metrics: tuple[str, ...] = ("micro_f1",)
    threshold: float = 0.5

    auto: ClassVar[Any] = AutoModelForSequenceClassification

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_metrics(self.metrics, SET_METRICS))
        if not 0.0 < self.threshold < 1.0:
            raise ValueError(f"threshold must be between 0 and 1, not {self.threshold}")

    @property
    def monitor(self) -> str:
        return self.metrics[0]

    def head(self, labels: Sequence[str] | None) -> dict[str, Any]:
        return {**label_head(_several(labels)), "problem_type": "multi_label_classification"}

    def check_labels(self, labels: Sequence[str] | None, of_data: Sequence[str] | None) -> None:
        check_same_labels(labels, of_data)

    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        count = len(_several(labels))
        return collection({name: self._metric(name, count) for name in self.metrics})

    def _metric(self, name: str, count: int) -> Metric:
        if name == "subset_accuracy":
            return MultilabelExactMatch(count, threshold=self.threshold)
        if name == "map":
            return PresentAveragePrecision(count)
        if name == "auroc":
            return PresentAUROC(count)
        average: Any = name.removesuffix("_f1")
        return MultilabelF1Score(count, threshold=self.threshold, average=average)

    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**model_inputs(batch))
        target = batch["labels"].float()
        return F.binary_cross_entropy_with_logits(outputs.logits.float(), target), outputs

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
        metrics.update(outputs.logits.float().sigmoid(), batch["labels"])

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """``{"labels": [names], "probabilities": {name: probability}}`` per row.

        Without ``labels`` the names come from the configuration of the model.
        """
        probabilities = model(**model_inputs(batch)).logits.float().sigmoid()  # (B, labels)
        id2label: Any = model.config.id2label
        names = labels or [id2label[i] for i in range(probabilities.shape[-1])]
        shares = [dict(zip(names, row, strict=True)) for row in probabilities.tolist()]
        return [
            {
                "labels": [name for name, share in row.items() if share > self.threshold],
                "probabilities": row,
            }
            for row in shares
        ]


def _several(labels: Sequence[str] | None) -> Sequence[str]:
    names = require_labels(labels)
    if len(names) < 2:
        raise ValueError(
            f"there is one label, {names[0]!r}, and a set of labels needs two: for a yes or no use "
            "Classification"
        )
    return names
