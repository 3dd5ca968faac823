"""Masked language modelling with an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.aggregation import MeanMetric
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.tasks._tokens import IGNORED, Perplexity, count, token_loss
from lightning_pelt.tasks.base import Batch, Task, checked_metrics, collection, model_inputs

METRICS = ("perplexity", "accuracy")


@dataclass(frozen=True)
class MaskedLM(Task):
    """The hidden tokens of a text; see :class:`~lightning_pelt.data.MaskedText` for the rows.

    Predictions fill the mask tokens of texts.

    Args:
        metrics: names among perplexity (over hidden tokens); accuracy (of the most probable
            token). The first one selects the best checkpoint.
        top_k: number of tokens to predict for each mask token.

    Raises:
        ValueError: an unknown metric, or ``top_k`` is below 1.

    Example:
        >>> from lightning_pelt import MaskedLM
        >>> task = MaskedLM(top_k=3)
        >>> task.monitor, task.mode
        ('perplexity', 'min')
    """

    metrics: tuple[str, ...] = ("perplexity", "accuracy")
    top_k: int = 5

    auto: ClassVar[Any] = AutoModelForMaskedLM
    decodes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_metrics(self.metrics, METRICS))
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, expected at least 1")

    @property
    def monitor(self) -> str:
        return self.metrics[0]

    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        build = {"perplexity": Perplexity, "accuracy": MeanMetric}
        return collection({name: build[name]() for name in self.metrics}, compute_groups=False)

    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        outputs = model(**model_inputs(batch))
        outputs.loss = token_loss(outputs.logits, batch["labels"])
        return outputs.loss, outputs

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
        targets = batch["labels"]
        for name, metric in metrics.items(keep_base=True, copy_state=False):
            if name == "perplexity":
                metric.update(outputs.loss, count(targets))
            else:
                hidden = targets != IGNORED
                metric.update((outputs.logits.argmax(-1) == targets)[hidden].float())

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """``{"text": filled, "fills": [...]}`` per row.

        ``fills`` has, for each mask token, the ``top_k`` most probable tokens as ``{"token": ...,
        "probability": ...}``. ``text`` has the most probable of each in its place.

        Raises:
            ValueError: there is no tokenizer, or it has no mask token.
        """
        if tokenizer is None or tokenizer.mask_token_id is None:
            raise ValueError(
                "filling masks needs a tokenizer with a mask token: pass tokenizer=..."
            )
        ids = batch["input_ids"]
        masks = ids == tokenizer.mask_token_id
        logits = model(**model_inputs(batch)).logits[masks].float()  # (masks, V)
        top = logits.softmax(-1).topk(min(self.top_k, logits.shape[-1]))
        filled = ids.masked_scatter(masks, top.indices[:, 0])
        fills = iter(
            [
                {"token": str(tokenizer.decode([token])).strip(), "probability": probability}
                for token, probability in zip(tokens, probabilities, strict=True)
            ]
            for tokens, probabilities in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        )
        return [
            {
                "text": str(tokenizer.decode(row, skip_special_tokens=True)).strip(),
                "fills": [next(fills) for _ in range(number)],
            }
            for row, number in zip(filled, masks.sum(-1).tolist(), strict=True)
        ]
