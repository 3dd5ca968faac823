"""Answers of questions as spans of a context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.aggregation import MeanMetric
from torchmetrics.functional.text import squad
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase

from lightning_pelt.data._window_batch import (
    ANSWERS,
    CONTEXT,
    END,
    ENDS,
    ID,
    NULL,
    ROW_OF_WINDOW,
    START,
    STARTS,
)
from lightning_pelt.tasks._windows import forward
from lightning_pelt.tasks.base import Batch, Task, checked_metrics, collection

ANSWER_METRICS = ("f1", "exact_match")
CANDIDATES = 20  # spans that share the probability, as in the SQuAD scripts of BERT


class Candidate(NamedTuple):
    """A span of the context.

    Attributes:
        start: its first character.
        end: the character after its last.
        score: sum of the logits of its first and its last token.
    """

    start: int
    end: int
    score: float


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """Extractive question answering (Rajpurkar et al., 2016 and 2018).

    The rows are those of :class:`~lightning_pelt.data.AnsweredQuestions`. An answer is the span of
    the context whose first and last token have the highest sum of logits.

    Args:
        metrics: names among f1 (overlap of words) and exact_match, both from 0 to 1, with SQuAD's
            normalisation and the best of the answers of a row. The first one selects the best
            checkpoint.
        max_answer_length: tokens of an answer.
        null_threshold: for data with questions without an answer: the answer is empty if the score
            of no answer is higher than that of the best span by more than this; 0 compares them
            directly. None: every question is answered. The score of no answer of a row is its
            lowest in a window.
        n_best: predictions also list this many spans, if it is more than 1.

    Raises:
        ValueError: an unknown metric, or a number below 1.

    Example:
        >>> from lightning_pelt import QuestionAnswering
        >>> QuestionAnswering(null_threshold=0.0).monitor
        'f1'
    """

    metrics: tuple[str, ...] = ("f1", "exact_match")
    max_answer_length: int = 30
    null_threshold: float | None = None
    n_best: int = 1

    auto: ClassVar[Any] = AutoModelForQuestionAnswering

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_metrics(self.metrics, ANSWER_METRICS))
        for name in ("max_answer_length", "n_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def monitor(self) -> str:
        return self.metrics[0]

    def build_metrics(
        self, labels: Sequence[str] | None = None, *, stage: str = "val"
    ) -> MetricCollection:
        return collection({name: MeanMetric() for name in self.metrics}, compute_groups=False)

    def step(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
        outputs = forward(model, batch, ["start_logits", "end_logits"])
        start = F.cross_entropy(outputs.start_logits.float(), batch[START])
        end = F.cross_entropy(outputs.end_logits.float(), batch[END])
        return (start + end) / 2, outputs

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
        predicted = [row["text"] for row in self._rows(batch, outputs)]
        if self.null_threshold is None and not all(batch[ANSWERS]):
            rank_zero_warn(
                "some questions have no answer, and the task answers every question: set "
                "null_threshold, such as QuestionAnswering(null_threshold=0.0)"
            )
        scores = answer_scores(predicted, batch[ANSWERS])
        for name, metric in metrics.items(keep_base=True, copy_state=False):
            metric.update(torch.tensor(scores[name], device=batch[START].device))

    def predict(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        labels: Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> list[dict[str, Any]]:
        """``{"text": answer, "start": character, "end": character, "score": probability}`` per row.

        ``context[start:end]`` is the text. No answer is ``""`` from 0 to 0. The probability is the
        softmax over the scores of the 20 best spans and, with ``null_threshold``, of no answer.
        With ``n_best`` above 1, ``"n_best"`` has as many such dictionaries, the best first. With an
        ``id`` column, ``"id"`` is the row's.
        """
        return self._rows(batch, forward(model, batch, ["start_logits", "end_logits"]))

    def _rows(self, batch: Batch, outputs: Any) -> list[dict[str, Any]]:
        if STARTS not in batch:
            raise ValueError(
                f"the batch has no {STARTS!r}, so the characters of its tokens are unknown: "
                "evaluate and predict with a data module such as AnsweredQuestions"
            )
        start, end = outputs.start_logits.float(), outputs.end_logits.float()
        found = candidates(start, end, batch, max(CANDIDATES, self.n_best), self.max_answer_length)
        windows = torch.arange(len(start), device=start.device)
        null = start[windows, batch[NULL]] + end[windows, batch[NULL]]  # (W,)
        lowest = torch.full((len(found),), torch.inf, device=start.device)
        lowest = lowest.scatter_reduce(0, batch[ROW_OF_WINDOW], null, "amin")
        rows = zip(batch[CONTEXT], found, lowest.tolist(), strict=True)
        predictions = [self._prediction(*row) for row in rows]
        if ID in batch:
            pairs = zip(batch[ID], predictions, strict=True)
            predictions = [{"id": name, **prediction} for name, prediction in pairs]
        return predictions

    def _prediction(
        self, context: str, spans: Sequence[Candidate], null_score: float
    ) -> dict[str, Any]:
        """The prediction of a row.

        Args:
            context: of the row.
            spans: the best first; none if no token of the context has a character.
            null_score: of no answer.
        """
        null = Candidate(0, 0, null_score)
        options = [*spans]
        if self.null_threshold is not None or not spans:
            silent = not spans or null_score - spans[0].score > (self.null_threshold or 0.0)
            options = [null, *spans] if silent else [spans[0], null, *spans[1:]]
            options[1:] = sorted(options[1:], key=lambda each: -each.score)
        shares = torch.tensor([each.score for each in options]).softmax(0).tolist()
        answers = [
            {"text": context[start:end], "start": start, "end": end, "score": share}
            for (start, end, _), share in zip(options, shares, strict=True)
        ]
        best: dict[str, Any] = answers[0]
        return {**best, "n_best": answers[: self.n_best]} if self.n_best > 1 else best


def candidates(
    start: Tensor, end: Tensor, batch: Batch, count: int, length: int
) -> list[list[Candidate]]:
    """The best spans of each row, the best first.

    Args:
        start: (W, T) logits of first tokens.
        end: (W, T) logits of last tokens.
        batch: with ``starts``, ``ends`` (W, T) and ``row_of_window`` (W,).
        count: number of spans of a row.
        length: maximum number of tokens of a span.
    """
    start = start.masked_fill(batch[STARTS] < 0, -torch.inf)
    end = end.masked_fill(batch[ENDS] < 0, -torch.inf)
    padded = F.pad(end, (0, length - 1), value=-torch.inf)
    scores = start[:, :, None] + padded.unfold(1, length, 1)  # (W, T, length)
    top, index = scores.flatten(1).topk(min(count, scores[0].numel()))  # (W, count)
    first = index // length
    last = (first + index % length).clamp(max=start.shape[1] - 1)
    begins, stops = batch[STARTS].gather(1, first), batch[ENDS].gather(1, last)
    found: list[list[Candidate]] = [[] for _ in batch[CONTEXT]]
    windows = zip(
        batch[ROW_OF_WINDOW].tolist(), begins.tolist(), stops.tolist(), top.tolist(), strict=True
    )
    for row, *columns in windows:
        spans = (Candidate(*each) for each in zip(*columns, strict=True))
        found[row] += [span for span in spans if span.score > -torch.inf]
    return [sorted(row, key=lambda span: -span.score)[:count] for row in found]


def answer_scores(
    predicted: Sequence[str], answers: Sequence[Sequence[str]]
) -> dict[str, list[float]]:
    """F1 and exact match of each row, from 0 to 1, the best over its answers.

    An answer that is empty after normalisation ("the") is left out, and a row without answers has
    the answer ``""``, as in the script of SQuAD 2.0.
    """
    scores: dict[str, list[float]] = {name: [] for name in ANSWER_METRICS}
    for text, gold in zip(predicted, answers, strict=True):
        target: Any = {"answers": {"text": _real(gold) or [""], "answer_start": [0]}, "id": "0"}
        result = squad({"prediction_text": text, "id": "0"}, target)
        for name, values in scores.items():
            values.append(float(result[name]) / 100)
    return scores


def _real(answers: Sequence[str]) -> list[str]:
    """The answers with a letter or digit outside articles."""
    empty: Any = {"prediction_text": "", "id": "0"}
    matches = [
        squad(empty, {"answers": {"text": [each], "answer_start": [0]}, "id": "0"})["exact_match"]
        for each in answers
    ]
    return [each for each, match in zip(answers, matches, strict=True) if not match]
