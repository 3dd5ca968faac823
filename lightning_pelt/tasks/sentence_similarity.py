"""How similar two texts are: embeddings, trained on pairs with a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.tasks._embedding import EmbeddingTask
from lightning_pelt.tasks._gathering import all_rows, all_sizes, gathers
from lightning_pelt.tasks.base import Batch, checked_metrics, collection
from lightning_pelt.tasks.regression import VALUE_METRICS

METRICS = ("spearman", "pearson")


class Similar(NamedTuple):
    """The cosines of the pairs of a batch, (B,)."""

    cosines: Tensor


@dataclass(frozen=True)
class SentenceSimilarity(EmbeddingTask):
    """The similarity of two texts, the cosine of their embeddings.

    Rows are pairs with a score; see :class:`~lightning_pelt.data.SentencePairs`. The CoSENT loss
    (Su, 2022) asks that pairs with a higher score have a higher cosine, so that only the order of
    the scores matters. With several processes the rows of all of them are compared.

    Args:
        metrics: names among spearman, pearson. The first one selects the best checkpoint.
        pooling: as in :class:`Contrastive`.
        temperature: divides cosines; 0.05 is a ``scale`` of 20.

    Raises:
        ValueError: an unknown metric or pooling, or ``temperature`` is not positive.

    Example:
        >>> from lightning_pelt import SentenceSimilarity
        >>> SentenceSimilarity().monitor
        'spearman'
    """

    metrics: tuple[str, ...] = METRICS
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    temperature: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_metrics(self.metrics, METRICS))
        self.check_pooling()
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, expected a positive number")

    @property
    def monitor(self) -> str:
        return self.metrics[0]

    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        return collection({name: VALUE_METRICS[name]() for name in self.metrics})

    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        if "labels" not in batch:
            raise ValueError(
                "SentenceSimilarity needs a score for each pair: give SentencePairs(score=...), or "
                "train with Contrastive"
            )
        outputs = self._similar(model, batch)
        loss = cosent_loss(outputs.cosines, batch["labels"].float(), temperature=self.temperature)
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
        metrics.update(outputs.cosines, batch["labels"].float())

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """``{"similarity": cosine}`` per row.

        Raises:
            ValueError: rows have a single text.
        """
        return [{"similarity": value} for value in self._similar(model, batch).cosines.tolist()]

    def _similar(self, model: PreTrainedModel, batch: Batch) -> Similar:
        found = self.embed(model, batch, normalise=True)
        first, second = found.of(0), found.of(1)
        if len(first) != len(second):
            raise ValueError("a similarity needs two texts per row: give SentencePairs(score=...)")
        return Similar((first * second).sum(-1))


def cosent_loss(cosines: Tensor, scores: Tensor, *, temperature: float) -> Tensor:
    """``log(1 + sum of exp((c_j - c_i) / temperature))`` over pairs i with a higher score than j.

    Args:
        cosines: of the pairs of this process, (B,); those of other processes are added.
        scores: of the pairs, (B,).
        temperature: divides the cosines.
    """
    if gathers():
        sizes = all_sizes(len(cosines), device=cosines.device)[:, 0].tolist()
        cosines, scores = all_rows(cosines, sizes), all_rows(scores, sizes)
    scaled = cosines.float() / temperature
    apart = scaled[None] - scaled[:, None]  # (i, j): c_j - c_i
    apart = apart.masked_fill(scores[:, None] <= scores[None], -torch.inf)
    return torch.cat([scaled.new_zeros(1), apart.flatten()]).logsumexp(0)
