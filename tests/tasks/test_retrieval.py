"""Metrics of retrieval: sentence-transformers and torchmetrics, duplicates, parts, and ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics.retrieval import (
    RetrievalMAP,
    RetrievalMRR,
    RetrievalNormalizedDCG,
    RetrievalRecall,
)

from lightning_pelt.tasks import _retrieval
from lightning_pelt.tasks._retrieval import Retrieval, checked_names
from lightning_pelt.tasks.contrastive import Contrastive

NAMES = ("mrr_10", "ndcg_10", "recall_1", "recall_10", "map_100", "map", "mrr", "ndcg_3")


def rows(count: int = 60, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Noisy pairs, of which some have the same anchor or the same positive."""
    draw = torch.Generator().manual_seed(seed)
    anchor = torch.randint(0, 40, (count,), generator=draw)
    positive = (anchor + torch.randint(0, 3, (count,), generator=draw)) % 35
    texts = torch.randn(40, 8, generator=draw)
    documents = 0.6 * texts[:35] + torch.randn(35, 8, generator=draw)
    normal = torch.nn.functional.normalize
    return normal(texts[anchor]), normal(documents[positive]), anchor, positive + 1000


def found(parts: tuple[torch.Tensor, ...], size: int = 16) -> dict[str, float]:
    metrics = Contrastive(metrics=NAMES).build_metrics()
    for part in zip(*(values.split(size) for values in parts), strict=True):
        metrics.update(*part)
    return {name: value.item() for name, value in metrics.compute().items()}


@pytest.mark.slow
def test_sentence_transformers_agrees() -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    parts = rows()
    anchors, positives, query, document = parts
    by_query = {str(q.item()): anchors[i] for i, q in enumerate(query)}
    by_document = {str(d.item()): positives[i] for i, d in enumerate(document)}
    relevant: dict[str, set[str]] = {}
    for q, d in zip(query.tolist(), document.tolist(), strict=True):
        relevant.setdefault(str(q), set()).add(str(d))
    evaluator = InformationRetrievalEvaluator(
        {q: q for q in by_query},
        {d: d for d in by_document},
        relevant,
        mrr_at_k=[10],
        ndcg_at_k=[3, 10],
        accuracy_at_k=[1],
        precision_recall_at_k=[1, 10],
        map_at_k=[100],
        score_functions={"dot": lambda a, b: a @ b.T},
    )

    class Known:
        """Knows the embedding of each text."""

        similarity_fn_name = "dot"

        def encode_query(self, texts: list[str], **options: object) -> torch.Tensor:
            return torch.stack([by_query[text] for text in texts])

        def encode_document(self, texts: list[str], **options: object) -> torch.Tensor:
            return torch.stack([by_document[text] for text in texts])

    scores = evaluator.compute_metrices(Known())["dot"]
    expected = {
        "mrr_10": scores["mrr@k"][10],
        "ndcg_10": scores["ndcg@k"][10],
        "ndcg_3": scores["ndcg@k"][3],
        "recall_1": scores["recall@k"][1],
        "recall_10": scores["recall@k"][10],
        "map_100": scores["map@k"][100],
    }
    values = found(parts)
    for name, value in expected.items():
        assert values[name] == pytest.approx(float(value), abs=1e-6), name


def test_torchmetrics_agrees() -> None:
    anchors, positives, query, document = parts = rows()
    queries, documents = query.unique(), document.unique()
    of_query = torch.stack([anchors[query == q][0] for q in queries])
    of_document = torch.stack([positives[document == d][0] for d in documents])
    scores = of_query @ of_document.T + 2  # torchmetrics leaves negative ones out
    pairs = set(zip(query.tolist(), document.tolist(), strict=True))
    target = torch.tensor([[(q, d) in pairs for d in documents.tolist()] for q in queries.tolist()])
    index = torch.arange(len(queries))[:, None].expand_as(scores)
    metrics = {
        "mrr_10": RetrievalMRR(top_k=10),
        "mrr": RetrievalMRR(),
        "map": RetrievalMAP(),
        "ndcg_10": RetrievalNormalizedDCG(top_k=10),
        "recall_10": RetrievalRecall(top_k=10),
    }
    values = found(parts)
    for name, metric in metrics.items():
        expected = metric(scores.flatten(), target.flatten(), indexes=index.flatten())
        assert values[name] == pytest.approx(expected.item(), abs=1e-6), name


def test_parts_of_the_queries_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found(rows())
    monkeypatch.setattr(_retrieval, "SCORES", 100)
    assert found(rows(), size=7) == pytest.approx(whole)


def test_names() -> None:
    with pytest.raises(ValueError, match="unknown metric 'mmr_10': did you mean 'mrr_10'"):
        checked_names(("mmr_10",))
    with pytest.raises(ValueError, match="unknown metric 'mrr_0'"):
        Retrieval("mrr_0")
    with pytest.raises(ValueError, match="metrics is empty"):
        checked_names(())
    assert checked_names("map") == ("map",)


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    share = slice(0, 25) if rank == 0 else slice(25, 60)
    torch.save(found(tuple(part[share] for part in rows())), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_agree_with_one(tmp_path: Path) -> None:
    mp.start_processes(on_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    expected = found(rows())
    for rank in (0, 1):
        values = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert values == pytest.approx(expected, abs=1e-6)
