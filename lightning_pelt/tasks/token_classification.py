"""One label per word: named entities, parts of speech, chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers import (
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_pelt.data._window_batch import ROW_OF_WINDOW, TAGS, WORD_OF_TOKEN, WORDS
from lightning_pelt.tasks._entities import (
    OUTSIDE,
    SCHEMES,
    EntityScore,
    Scheme,
    check_tags,
    entities,
    entity_counts,
    types_of,
)
from lightning_pelt.tasks._labels import check_same_labels, label_head, require_labels
from lightning_pelt.tasks._tokens import IGNORED, token_loss
from lightning_pelt.tasks._windows import forward
from lightning_pelt.tasks.base import Batch, Task, checked_metrics, collection
from lightning_pelt.utils.errors import unknown

ENTITY_METRICS = ("f1", "precision", "recall", "macro_f1")
WORD_METRICS = (*ENTITY_METRICS, "accuracy")


@dataclass(frozen=True)
class TokenClassification(Task):
    """A tag per word; see :class:`~lightning_pelt.data.TaggedWords` for the rows.

    The entities of a row are right if their type, first and last word are, as in CoNLL-2003 and
    seqeval. Tests also report the F1 of each type, as ``f1_PER``.

    Args:
        metrics: names among f1, precision, recall (of all entities together); macro_f1 (mean over
            the types); accuracy (of words). The first one selects the best checkpoint. For tags
            that are no entities, such as parts of speech: accuracy.
        scheme: how tags write entities. "conll" reads IOB1, IOB2 and IOBES tags as conlleval and
            seqeval's default mode, also where tags contradict the scheme. IOB1, IOB2, IOBES and
            BILOU count only entities that are written as the scheme demands, as seqeval's strict
            mode.

    Raises:
        ValueError: an unknown metric or scheme.

    Example:
        >>> from lightning_pelt import TokenClassification
        >>> task = TokenClassification(metrics=("f1", "accuracy"), scheme="IOB2")
        >>> task.monitor, task.mode
        ('f1', 'max')
    """

    metrics: tuple[str, ...] = ("f1",)
    scheme: Scheme = "conll"

    auto: ClassVar[Any] = AutoModelForTokenClassification

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_metrics(self.metrics, WORD_METRICS))
        if self.scheme not in SCHEMES:
            raise unknown("scheme", self.scheme, SCHEMES)

    @property
    def monitor(self) -> str:
        return self.metrics[0]

    @property
    def finds_entities(self) -> bool:
        """Whether a metric counts entities."""
        return bool(set(self.metrics) & set(ENTITY_METRICS))

    def head(self, labels: Sequence[str] | None) -> dict[str, Any]:
        return label_head(self._checked(labels))

    def check_labels(self, labels: Sequence[str] | None, of_data: Sequence[str] | None) -> None:
        check_same_labels(labels, of_data)

    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        names = self._checked(labels)
        types = types_of(names) if self.finds_entities else []
        chosen = {name: _metric(name, len(types), len(names)) for name in self.metrics}
        if stage == "test":
            for index, kind in enumerate(types):
                chosen[f"f1_{kind}"] = EntityScore(len(types), of=index)
        return collection(chosen, compute_groups=False)

    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        outputs = forward(model, batch, ["logits"])
        return token_loss(outputs.logits, batch["labels"]), outputs

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
        names = require_labels(labels)
        guesses = best_of_words(outputs.logits, batch, outside=_outside(names))[0]
        true = batch[TAGS]
        real = true != IGNORED
        named = dict(metrics.items(keep_base=True, copy_state=False))
        if accuracy := named.pop("accuracy", None):
            accuracy.update(guesses[real], true[real])
        if not named:
            return
        sizes = batch[WORDS].tolist()
        predicted, gold = (
            [[names[i] for i in row[:size]] for row, size in zip(side.tolist(), sizes, strict=True)]
            for side in (guesses, true)
        )
        counts = entity_counts(predicted, gold, types_of(names), self.scheme)
        for metric in named.values():
            metric.update(counts)

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """``{"tags": [names], "scores": [their probabilities], "entities": [...]}`` per row.

        There is one tag for each word of the row.

        An entity is ``{"type": name, "start": first word, "end": word after the last, "score":
        mean probability of its tags}``; words count from 0. Without metrics of entities there are
        none. Without ``labels`` the names come from the configuration of the model.
        """
        logits = forward(model, batch, ["logits"]).logits
        id2label: Any = model.config.id2label
        names = labels or [id2label[i] for i in range(logits.shape[-1])]
        best, scores = best_of_words(logits, batch, outside=_outside(names))
        rows = zip(best.tolist(), scores.tolist(), batch[WORDS].tolist(), strict=True)
        return [
            self._prediction([names[i] for i in tags[:size]], shares[:size])
            for tags, shares, size in rows
        ]

    def _prediction(self, tags: list[str], scores: list[float]) -> dict[str, Any]:
        row: dict[str, Any] = {"tags": tags, "scores": scores}
        if self.finds_entities:
            row["entities"] = [
                {
                    "type": kind,
                    "start": start,
                    "end": end,
                    "score": sum(scores[start:end]) / (end - start),
                }
                for kind, start, end in entities(tags, self.scheme)
            ]
        return row

    def _checked(self, labels: Sequence[str] | None) -> Sequence[str]:
        names = require_labels(labels)
        if self.finds_entities:
            check_tags(names, self.scheme)
        return names


def best_of_words(logits: Tensor, batch: Batch, *, outside: int) -> tuple[Tensor, Tensor]:
    """The best tag of each word and its probability, both (B, words).

    Each word is read at one token of one window, which ``word_of_token`` marks; words without a
    token have the tag ``outside`` with probability 1.

    Args:
        logits: (W, T, tags).
        batch: with ``word_of_token`` (W, T), ``row_of_window`` (W,) and ``words`` (B,).
        outside: index of a tag.

    Raises:
        ValueError: the batch does not say where words are.
    """
    if WORD_OF_TOKEN not in batch:
        raise ValueError(
            f"the batch has no {WORD_OF_TOKEN!r}, so the words of its tokens are unknown: evaluate "
            "and predict with a data module such as TaggedWords"
        )
    word, sizes = batch[WORD_OF_TOKEN], batch[WORDS]
    read = word >= 0
    rows = batch[ROW_OF_WINDOW][:, None].expand_as(word)[read]
    scores, best = logits[read].float().softmax(-1).max(-1)
    shape = len(sizes), int(sizes.max())
    every = torch.full(shape, outside, device=word.device)
    shares = torch.ones(shape, device=word.device)
    every[rows, word[read]] = best
    shares[rows, word[read]] = scores
    return every, shares


def _metric(name: str, types: int, tags: int) -> Metric:
    if name == "accuracy":
        return MulticlassAccuracy(max(tags, 2), average="micro")
    if name == "macro_f1":
        return EntityScore(types, of="macro")
    return EntityScore(types, name)  # type: ignore[arg-type]


def _outside(names: Sequence[str]) -> int:
    return list(names).index(OUTSIDE) if OUTSIDE in names else 0
