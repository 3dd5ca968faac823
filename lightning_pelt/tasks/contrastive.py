"""Embeddings of texts, trained on pairs by a contrastive loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torchmetrics import MetricCollection
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.data._several_texts import HASHES
from lightning_pelt.tasks._embedding import EmbeddingTask
from lightning_pelt.tasks._in_batch import Pairs, in_batch_loss
from lightning_pelt.tasks._retrieval import Retrieval, checked_names
from lightning_pelt.tasks._several_texts import present
from lightning_pelt.tasks.base import Batch


@dataclass(frozen=True)
class Contrastive(EmbeddingTask):
    """Embeddings in which texts that belong together are near each other.

    Rows are pairs of an anchor and a positive; see :class:`~lightning_pelt.data.SentencePairs`. The
    loss is the cross-entropy of the positive among those of all rows of a batch and all hard
    negatives (van den Oord et al., 2018; Henderson et al., 2017), the ``InfoNCE`` or
    ``MultipleNegativesRankingLoss`` of other libraries. With several processes the rows of all of
    them are compared, so that two processes with a batch of 32 take the steps of one with 64.
    Larger batches have more and harder negatives; accumulated gradients do not add any. A batch of
    one row without hard negatives has nothing to compare, and its loss is 0.

    In evaluation, the anchors of a split are queries and its positives are the documents. The loss
    of an evaluation depends on ``eval_batch_size``; the metrics do not. They are mrr_k, ndcg_k,
    recall_k and map_k for any rank k, and map, over all ranks.

    Args:
        metrics: their names. The first one selects the best checkpoint.
        pooling: the mean over the real tokens of a text, its first token ("cls"), or its last, for
            decoders. "auto" is what sentence-transformers has saved with the backbone, else "mean".
        normalise: whether embeddings have length 1, so that similarities are cosines.
        temperature: divides similarities; 0.05 is a ``scale`` of 20.
        symmetric: whether positives also have to find their anchors.
        mask_duplicates: whether texts that are equal to the positive, and positives of equal
            anchors, are left out of the negatives.

    Raises:
        ValueError: an unknown metric or pooling, or ``temperature`` is not positive.

    Example:
        >>> from lightning_pelt import Contrastive
        >>> task = Contrastive(metrics=("ndcg_10", "recall_1"))
        >>> task.monitor, task.mode
        ('ndcg_10', 'max')
    """

    metrics: tuple[str, ...] = ("mrr_10", "ndcg_10", "recall_1", "recall_10", "map")
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    normalise: bool = True
    temperature: float = 0.05
    symmetric: bool = False
    mask_duplicates: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_names(self.metrics))
        self.check_pooling()
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, expected a positive number")

    @property
    def monitor(self) -> str:
        return self.metrics[0]

    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        metrics: dict[str, Any] = {name: Retrieval(name) for name in self.metrics}
        return MetricCollection(metrics, compute_groups=[list(metrics)])  # the states exist once

    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        if "labels" in batch:
            raise ValueError(
                "the pairs have scores, and Contrastive takes each for a pair that belongs "
                "together: use SentenceSimilarity, or SentencePairs without score="
            )
        outputs = self.embed(model, batch, normalise=self.normalise)
        hashes = [None, None, None]
        if HASHES in batch:
            of_texts = batch[HASHES][present(batch)]
            hashes = [of_texts[part] for part in _parts(outputs.role)]
        pairs = Pairs(*(outputs.texts[part] for part in _parts(outputs.role)), *hashes)
        loss = in_batch_loss(
            pairs,
            temperature=self.temperature,
            symmetric=self.symmetric,
            mask_duplicates=self.mask_duplicates,
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
        hashes = batch.get(HASHES)
        if hashes is None:
            raise ValueError(
                f"retrieval metrics need {HASHES} (B, n) in a batch, numbers that are equal for "
                "equal texts: use SentencePairs, or add them"
            )
        anchors, positives = outputs.of(0).detach(), outputs.of(1).detach()
        metrics.update(anchors, positives, hashes[:, 0], hashes[:, 1])

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """``{"anchor": embedding}`` per row, with the ``positive`` and ``negatives`` if it has any.

        An embedding is a list of numbers.
        """
        found = self.embed(model, batch, normalise=self.normalise)
        rows: list[dict[str, Any]] = [{} for _ in range(len(batch["input_ids"]))]
        for text, row, role in zip(*(part.tolist() for part in found), strict=True):
            if role < 2:
                rows[row]["positive" if role else "anchor"] = text
            else:
                rows[row].setdefault("negatives", []).append(text)
        return rows


def _parts(role: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which texts are anchors, positives and negatives."""
    return role == 0, role == 1, role > 1
