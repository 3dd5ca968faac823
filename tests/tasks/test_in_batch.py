"""The loss of pairs: sentence-transformers, duplicates, and two processes with gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from lightning_pelt.tasks._in_batch import Pairs, in_batch_loss


def embeddings(rows: int = 7, negatives: int = 7, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    sizes = (rows, rows, negatives)
    return [torch.nn.functional.normalize(torch.randn(n, 5, generator=draw)) for n in sizes]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("negatives", [0, 7])
@pytest.mark.slow
def test_sentence_transformers_agrees(symmetric: bool, negatives: int) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses

    kind = "MultipleNegativesSymmetricRankingLoss" if symmetric else "MultipleNegativesRankingLoss"
    other: Any = getattr(losses, kind)(model=None, scale=25.0)
    anchors, positives, more = embeddings(negatives=negatives)
    parts = [anchors, positives, *([more] if negatives else [])]
    expected = other.compute_loss_from_embeddings(parts, None)
    found = in_batch_loss(Pairs(anchors, positives, more), temperature=0.04, symmetric=symmetric)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_formula() -> None:
    anchors, positives, negatives = embeddings(3, 2)
    total = 0.0
    for row in range(3):
        scores = [float(anchors[row] @ c) / 0.1 for c in (*positives, *negatives)]
        exponents = torch.tensor(scores).exp()
        total -= float((exponents[row] / exponents.sum()).log()) / 3
    found = in_batch_loss(Pairs(anchors, positives, negatives), temperature=0.1)
    assert found.item() == pytest.approx(total, abs=1e-5)


def test_duplicates_are_no_negatives() -> None:
    anchors, positives, negatives = embeddings(4, 1)
    anchor_hashes = torch.tensor([1, 2, 1, 4])  # the third row asks what the first asks
    positive_hashes = torch.tensor([10, 20, 30, 20])  # the fourth has the second's positive
    negative_hashes = torch.tensor([10])  # and the first's is someone's negative
    own = Pairs(anchors, positives, negatives, anchor_hashes, positive_hashes, negative_hashes)
    candidates = torch.cat([positives, negatives])
    left = [[0, 1, 3], [0, 1, 2, 4], [1, 2, 3, 4], [0, 2, 3, 4]]
    expected = 0.0
    for row, kept in enumerate(left):
        scores = anchors[row] @ candidates[kept].T / 0.05
        expected -= scores.log_softmax(0)[kept.index(row)].item() / 4
    assert in_batch_loss(own, temperature=0.05).item() == pytest.approx(expected, abs=1e-5)
    plain = in_batch_loss(Pairs(*own[:3]), temperature=0.05)
    unmasked = in_batch_loss(own, temperature=0.05, mask_duplicates=False)
    assert unmasked.item() == pytest.approx(plain.item())


def test_one_row_has_nothing_to_compare() -> None:
    anchors, positives, negatives = embeddings(1, 0)
    loss = in_batch_loss(Pairs(anchors.requires_grad_(), positives, negatives), temperature=0.05)
    loss.backward()
    assert loss.item() == 0
    assert not anchors.grad.any()  # type: ignore[union-attr]


# The loss is of embeddings x W, where W stands for the model, whose gradients DDP averages.
HASHES = torch.tensor([1, 2, 3, 1, 5, 6]), torch.tensor([7, 8, 9, 7, 8, 12])


def loss_of(rows: slice, negatives: slice) -> tuple[float, Tensor]:
    parts = embeddings(6, 3, seed=3)
    weight = torch.eye(5).add(0.1).requires_grad_()
    anchors, positives, more = (part @ weight for part in parts)
    hashes = HASHES[0][rows], HASHES[1][rows], torch.tensor([8, 20, 21])[negatives]
    own = Pairs(anchors[rows], positives[rows], more[negatives], *hashes)
    loss = in_batch_loss(own, temperature=0.2, symmetric=True)
    loss.backward()
    assert weight.grad is not None
    return loss.item(), weight.grad


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    shares = (slice(0, 3), slice(0, 1)) if rank == 0 else (slice(3, 6), slice(1, 3))
    loss, gradient = loss_of(*shares)
    dist.all_reduce(gradient)
    torch.save({"loss": loss, "gradient": gradient / 2}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one_with_all_rows(tmp_path: Path) -> None:
    mp.start_processes(on_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    loss, gradient = loss_of(slice(None), slice(None))
    saved = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert (saved[0]["loss"] + saved[1]["loss"]) / 2 == pytest.approx(loss, abs=1e-6)
    for each in saved:
        torch.testing.assert_close(each["gradient"], gradient, atol=1e-6, rtol=1e-5)
