"""Similarity of texts: sentence-transformers' CoSENT loss, two processes, and a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch import Trainer, seed_everything
from masked import mask_bert
from pairs import HERE
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from lightning_pelt import (
    Contrastive,
    LoRA,
    PELTModule,
    Plan,
    SentencePairs,
    SentenceSimilarity,
    WritePredictions,
)
from lightning_pelt.methods.config import rebuild
from lightning_pelt.tasks.sentence_similarity import cosent_loss

TASK = SentenceSimilarity()


def scored(path: Path, *, count: int = 128, seed: int = 0) -> str:
    """A file of pairs of 3 words; the score is the number of words that both have."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        first, second = (draw.choice(HERE, 3, replace=False).tolist() for _ in range(2))
        score = len({*first} & {*second})
        rows.append({"anchor": " ".join(first), "positive": " ".join(second), "score": score})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def values(rows: int = 9) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    cosines = torch.rand(rows, generator=draw) * 2 - 1
    return cosines, torch.randint(0, 4, (rows,), generator=draw).float()


def test_the_formula() -> None:
    cosines, scores = values()
    total = 1.0
    for i in range(9):
        for j in range(9):
            if scores[i] > scores[j]:
                total += float(((cosines[j] - cosines[i]) / 0.1).exp())
    found = cosent_loss(cosines, scores, temperature=0.1).exp().item()
    assert found == pytest.approx(total, rel=1e-4)
    same = cosent_loss(cosines.requires_grad_(), torch.ones(9), temperature=0.1)
    same.backward()
    assert same.item() == 0
    assert not cosines.grad.any()  # type: ignore[union-attr]


@pytest.mark.slow
def test_sentence_transformers_agrees() -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses

    draw = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, 8, 5, generator=draw)
    _, scores = values(8)
    model: Any = None
    expected = losses.CoSENTLoss(model, scale=20.0).compute_loss_from_embeddings(
        [first, second], scores
    )
    cosines = torch.cosine_similarity(first, second)
    found = cosent_loss(cosines, scores, temperature=0.05)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def gradient(rows: slice) -> tuple[float, Tensor]:
    cosines, scores = values()
    weight = torch.ones(9).requires_grad_()
    loss = cosent_loss((cosines * weight)[rows], scores[rows], temperature=0.5)
    loss.backward()
    assert weight.grad is not None
    return loss.item(), weight.grad


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    loss, own = gradient(slice(0, 4) if rank == 0 else slice(4, 9))
    dist.all_reduce(own)
    torch.save({"loss": loss, "gradient": own / 2}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one_with_all_rows(tmp_path: Path) -> None:
    mp.start_processes(on_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    loss, expected = gradient(slice(None))
    for rank in (0, 1):
        saved = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert saved["loss"] == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(saved["gradient"], expected)


def test_options_and_refusals(tmp_path: Path) -> None:
    task = SentenceSimilarity(metrics=("pearson",), pooling="cls")
    assert rebuild(task.to_config()) == task
    with pytest.raises(ValueError, match="temperature is -1"):
        SentenceSimilarity(temperature=-1)
    backbone, path = mask_bert(tmp_path / "bert"), scored(tmp_path / "t.jsonl", count=4)
    with pytest.raises(ValueError, match="give score= or negatives="):
        SentencePairs(backbone, test=path, score="score", negatives=["n"])
    model = TASK.load(backbone)
    (plain,) = SentencePairs(backbone, test=path, max_length=16).test_dataloader()
    with pytest.raises(ValueError, match="needs a score for each pair"):
        TASK.step(model, plain)
    (batch,) = SentencePairs(backbone, test=path, score="score", max_length=16).test_dataloader()
    assert batch["labels"].dtype == torch.float32
    with pytest.raises(ValueError, match="the pairs have scores, and Contrastive"):
        Contrastive().step(model, batch)


@pytest.mark.slow
def test_common_words_are_learned(tmp_path: Path) -> None:
    seed_everything(0)
    backbone = mask_bert(tmp_path / "bert")
    train, test = scored(tmp_path / "train.jsonl"), scored(tmp_path / "t.jsonl", count=40, seed=1)
    data = SentencePairs(
        backbone, train=train, test=test, score="score", batch_size=16, max_length=16
    )
    path = tmp_path / "similarities.jsonl"
    plan = Plan.uniform(LoRA(sites=("*attention.*", "ffn.*")))
    module = PELTModule(backbone, plan, TASK, lr=5e-3)
    trainer = Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[WritePredictions(str(path))],
    )
    trainer.fit(module, data)
    scores = trainer.test(module, data, verbose=False)[0]
    assert scores["test/spearman"] > 0.7
    trainer.predict(module, data)
    found = [json.loads(line)["similarity"] for line in path.read_text().splitlines()]
    given = [json.loads(line)["score"] for line in Path(test).read_text().splitlines()]
    assert scores["test/pearson"] == pytest.approx(pearsonr(found, given)[0], abs=1e-4)
    assert scores["test/spearman"] == pytest.approx(spearmanr(found, given)[0], abs=1e-2)
