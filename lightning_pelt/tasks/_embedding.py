"""The base of the tasks of embeddings: one vector for each text of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_pelt.data._several_texts import HASHES
from lightning_pelt.tasks._pooling import (
    SAVED,
    AutoSentenceModel,
    Pooling,
    embed,
    normalised,
    pooling_of,
)
from lightning_pelt.tasks._several_texts import flat_inputs, present
from lightning_pelt.tasks.base import Batch, Task
from lightning_pelt.utils.errors import unknown

POOLINGS = ("auto", "mean", "cls", "last")


class Embedded(NamedTuple):
    """The embeddings of the texts of a batch.

    Attributes:
        texts: (N, d).
        row: of each, (N,).
        role: of each, (N,): 0 is the anchor, 1 the positive or second text, others are negatives.
    """

    texts: Tensor
    row: Tensor
    role: Tensor

    def of(self, role: int) -> Tensor:
        """The anchors (B, d), or the positives."""
        return self.texts[self.role == role]


class EmbeddingTask(Task):
    """Base of the tasks of embeddings. A child has a field ``pooling``."""

    auto: ClassVar[Any] = AutoSentenceModel
    compares_rows: ClassVar[bool] = True
    pooling: Any

    def check_pooling(self) -> None:
        """Check the field.

        Raises:
            ValueError: it is unknown.
        """
        if self.pooling not in POOLINGS:
            raise unknown("pooling", self.pooling, POOLINGS)

    def load(
        self,
        backbone: str,
        *,
        labels: Sequence[str] | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> PreTrainedModel:
        """Load the backbone without a head; of an encoder-decoder, the encoder.

        Its configuration says how its texts are pooled, as ``sentence_pooling``.

        Raises:
            OSError: see :meth:`Task.load`.
            ValueError: sentence-transformers pools with this backbone in another way.
        """
        model = super().load(backbone, labels=labels, dtype=dtype)
        if self.pooling != "auto":
            setattr(model.config, SAVED, self.pooling)
        pooling_of(model)
        return model

    def embed(self, model: PreTrainedModel, batch: Batch, *, normalise: bool) -> Embedded:
        """The embeddings of all texts of a batch (B, n, T), in one forward."""
        inputs = flat_inputs(batch, besides=(HASHES,))
        texts = embed(model, inputs, self._pooling(model))
        row, role = present(batch).nonzero(as_tuple=True)
        return Embedded(normalised(texts, normalise), row, role)

    def _pooling(self, model: PreTrainedModel) -> Pooling:
        return pooling_of(model) if self.pooling == "auto" else self.pooling
