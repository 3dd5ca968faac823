"""Metrics of retrieval: the anchors of a split as queries, and its positives as documents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_pelt.utils.errors import unknown

KINDS = ("mrr", "ndcg", "map", "recall")
NAME = re.compile(r"([a-z]+?)(?:_(\d+))?")
SCORES = 1 << 24  # that are ranked at once, 64 MiB in fp32


class Retrieval(Metric):
    """How well the anchors of a split find their positives among the positives of all rows.

    Equal texts count once: an anchor that several rows have is one query with several relevant
    documents. Embeddings are collected over all batches and processes, and compared with a part of
    the queries at a time. The values are the means over the queries of:

    - ``mrr_k``: 1 / rank of the first relevant document, 0 beyond rank k.
    - ``recall_k``: the share of relevant documents with a rank of at most k.
    - ``ndcg_k``: the discounted cumulative gain, 1 / log2(rank + 1) for each relevant document of
      at most rank k, divided by its largest value (Jarvelin and Kekalainen, 2002).
    - ``map_k``: the mean precision at the ranks of the relevant documents of at most rank k, over
      min(k, number of them).

    Args:
        name: one of these; without ``_k``, over all ranks.

    Raises:
        ValueError: an unknown name, or k is 0.

    Example:
        >>> metric = Retrieval("mrr_10")
        >>> x = torch.eye(3)
        >>> metric.update(x, x[[1, 0, 2]], torch.arange(3), torch.arange(3))
        >>> round(metric.compute().item(), 3)
        0.667
    """

    higher_is_better = True
    full_state_update = False
    anchors: list[Tensor]
    positives: list[Tensor]
    anchor_hashes: list[Tensor]
    positive_hashes: list[Tensor]

    def __init__(self, name: str) -> None:
        super().__init__()
        self.kind, self.most = parsed(name)
        for state in ("anchors", "positives", "anchor_hashes", "positive_hashes"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(
        self, anchors: Tensor, positives: Tensor, anchor_hashes: Tensor, positive_hashes: Tensor
    ) -> None:
        """Add the embeddings (B, d) of pairs, and numbers (B,) that are equal for equal texts."""
        self.anchors.append(anchors)
        self.positives.append(positives)
        self.anchor_hashes.append(anchor_hashes)
        self.positive_hashes.append(positive_hashes)

    def compute(self) -> Tensor:
        queries, query = _distinct(self.anchors, self.anchor_hashes)
        documents, document = _distinct(self.positives, self.positive_hashes)
        relevant = torch.unique(torch.stack([query, document], 1), dim=0)  # sorted by query
        ranks = _ranks(queries, documents, relevant)
        order = torch.argsort(relevant[:, 0] * (len(documents) + 1) + ranks)
        owner, ranks = relevant[order, 0], ranks[order]
        sizes = torch.bincount(owner, minlength=len(queries))
        place = torch.arange(len(owner), device=owner.device) - (sizes.cumsum(0) - sizes)[owner] + 1
        most = self.most or len(documents)
        gains, best = _gains(self.kind, ranks.float(), place, sizes.clamp(max=most), sizes)
        gains = torch.where(ranks <= most, gains, 0.0)
        sums = gains.new_zeros(len(queries)).index_add(0, owner, gains)
        return (sums / best).mean()


def parsed(name: str) -> tuple[str, int | None]:
    """The kind of a metric, and the largest rank that counts.

    Example:
        >>> parsed("recall_5"), parsed("map")
        (('recall', 5), ('map', None))
    """
    match = NAME.fullmatch(name)
    if match is None or match[1] not in KINDS or (match[2] and int(match[2]) < 1):
        raise unknown("metric", name, [*(f"{kind}_10" for kind in KINDS), "map"])
    return match[1], int(match[2]) if match[2] else None


def checked_names(names: Sequence[str] | str) -> tuple[str, ...]:
    """Check the names of metrics of retrieval, and convert them to a tuple.

    Raises:
        ValueError: there is none, or one is unknown.
    """
    chosen = (names,) if isinstance(names, str) else tuple(names)
    if not chosen:
        raise ValueError("metrics is empty: name at least one, such as mrr_10 or ndcg_10")
    for name in chosen:
        parsed(name)
    return chosen


def _gains(kind: str, ranks: Tensor, place: Tensor, fitting: Tensor, sizes: Tensor) -> Any:
    """What each relevant document adds to its query, and the most that a query can have.

    Args:
        kind: of the metric.
        ranks: of the relevant documents, sorted by query and rank.
        place: of each among those of its query, from 1.
        fitting: number of relevant documents of each query that could count.
        sizes: number of all relevant documents of each query.
    """
    if kind == "mrr":
        return torch.where(place == 1, 1 / ranks, 0.0), torch.ones_like(sizes)
    if kind == "recall":
        return torch.ones_like(ranks), sizes
    if kind == "map":
        return place / ranks, fitting
    discounts = 1 / (torch.arange(1, int(fitting.max()) + 1).to(ranks) + 1).log2()
    ideal = discounts.cumsum(0)
    return 1 / (ranks + 1).log2(), ideal[fitting - 1]


def _distinct(embeddings: Any, hashes: Any) -> tuple[Tensor, Tensor]:
    """One embedding for each text, and the number of each row's text."""
    values, names = dim_zero_cat(embeddings), dim_zero_cat(hashes)
    found, number = torch.unique(names, return_inverse=True)
    rows = torch.arange(len(number), device=number.device)
    first = rows.new_full((len(found),), len(rows)).scatter_reduce(0, number, rows, "amin")
    return values[first].float(), number


def _ranks(queries: Tensor, documents: Tensor, relevant: Tensor) -> Tensor:
    """The rank, from 1, of each relevant pair of a query and a document (P, 2), sorted by query."""
    size = max(1, SCORES // len(documents))
    found = []
    for begin in range(0, len(queries), size):
        part = queries[begin : begin + size]
        order = (part @ documents.T).argsort(dim=1, descending=True, stable=True)
        places = torch.arange(1, len(documents) + 1, device=order.device).expand_as(order)
        ranks = torch.empty_like(order).scatter_(1, order, places)
        here = relevant[(relevant[:, 0] >= begin) & (relevant[:, 0] < begin + len(part))]
        found.append(ranks[here[:, 0] - begin, here[:, 1]])
    return torch.cat(found)
