"""Embeddings: pooling, gates per text, saved models, and a tiny model learns to translate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from masked import mask_bert
from pairs import translations
from small import bert, gpt2, t5

from lightning_pelt import (
    Contrastive,
    LoRA,
    PELTModule,
    Plan,
    Prompt,
    SentencePairs,
    UniPELT,
    WritePredictions,
    attach,
    load_pelt,
    merge,
    save_adapters,
)
from lightning_pelt.methods.config import rebuild
from lightning_pelt.tasks._pooling import saved_pooling
from lightning_pelt.tasks._retrieval import Retrieval
from lightning_pelt.testing import awaken
from lightning_pelt.utils.backbone import load_tokenizer

TASK = Contrastive()


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return bert(tmp_path / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def batch_of(backbone: str, path: str, **options: Any) -> dict[str, Any]:
    data = SentencePairs(backbone, test=path, max_length=16, **options)
    return next(iter(data.test_dataloader()))


@pytest.mark.parametrize(
    "plan", [UniPELT(), Plan.uniform(Prompt(length=3), LoRA())], ids=["unipelt", "prompt"]
)
def test_each_text_is_embedded_as_if_alone(backbone: str, tmp_path: Path, plan: Plan) -> None:
    path = translations(tmp_path / "t.jsonl", count=4, negatives=1)
    batch = batch_of(backbone, path, negatives=["negative0"])
    model = TASK.load(backbone)
    awaken(attach(model, plan))
    with torch.no_grad():
        rows = TASK.predict(model, batch)
        for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
            texts = [row["anchor"], row["positive"], *row["negatives"]]
            for text, each, real in zip(texts, ids, mask, strict=True):
                alone = {"input_ids": each[real.bool()][None, None]}
                expected = TASK.predict(model, alone)[0]["anchor"]
                assert text == pytest.approx(expected, abs=1e-5)
                assert torch.tensor(text).norm().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", [bert, gpt2], ids=["bert", "gpt2"])
@pytest.mark.slow
def test_pooling_is_that_of_sentence_transformers(
    tmp_path: Path, pooling: Any, side: str, family: Any
) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Pooling

    task = Contrastive(pooling=pooling, normalise=False)
    model = task.load(family(tmp_path / "model")).eval()
    assert model.config.sentence_pooling == pooling
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 5, 0, 0]]), torch.tensor([[1] * 4, [1, 1, 0, 0]])
    if side == "left":
        ids, mask = ids.flip(1), mask.flip(1)
    with torch.no_grad():
        found = task.predict(model, {"input_ids": ids[:, None], "attention_mask": mask[:, None]})
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    other = Pooling(states.shape[-1], "lasttoken" if pooling == "last" else pooling)
    expected = other({"token_embeddings": states, "attention_mask": mask})["sentence_embedding"]
    torch.testing.assert_close(torch.tensor([row["anchor"] for row in found]), expected)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 16}, "last"),
    ],
)
def test_pooling_comes_from_the_backbone(
    backbone: str, content: dict[str, Any], found: str
) -> None:
    assert saved_pooling(backbone) is None
    assert TASK.load(backbone).config.sentence_pooling == "mean"
    folder = Path(backbone) / "1_Pooling"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content))
    assert saved_pooling(backbone) == found
    assert TASK.load(backbone).config.sentence_pooling == found


def test_other_poolings_are_refused(backbone: str) -> None:
    folder = Path(backbone) / "1_Pooling"
    folder.mkdir()
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    (folder / "config.json").write_text(json.dumps(flags))
    with pytest.raises(ValueError, match=r"pools by mean and max .*set pooling of Contrastive"):
        TASK.load(backbone)
    assert Contrastive(pooling="cls").load(backbone).config.sentence_pooling == "cls"


def test_no_unused_head_is_trained(backbone: str, tmp_path: Path) -> None:
    """DDP would wait for its gradients. The first file has a pooler, the second has none."""
    for name, pooler in ((backbone, True), (mask_bert(tmp_path / "mask"), False)):
        model = TASK.load(name)
        assert any("pooler" in n for n, _ in model.named_parameters()) == pooler
        attachment = attach(model, Plan.uniform(LoRA()))
        assert set(attachment.parameter_groups()) == {"lora"}


def test_adapters_load_in_one_line(backbone: str, tmp_path: Path) -> None:
    folder = Path(backbone) / "1_Pooling"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    batch = batch_of(backbone, translations(tmp_path / "t.jsonl", count=4))
    model = TASK.load(backbone)
    awaken(attach(model, UniPELT()))
    save_adapters(model, tmp_path / "adapters")
    again = load_pelt(tmp_path / "adapters").model
    with torch.no_grad():
        pairs = zip(TASK.predict(model, batch), TASK.predict(again, batch), strict=True)
        for row, other in pairs:
            assert other["anchor"] == pytest.approx(row["anchor"], abs=1e-6)


def test_the_encoder_of_an_encoder_decoder(tmp_path: Path) -> None:
    backbone = t5(tmp_path / "t5")
    model = TASK.load(backbone)
    awaken(attach(model, UniPELT()))
    batch = batch_of(backbone, translations(tmp_path / "t.jsonl", count=3))
    loss, _ = TASK.step(model, batch)
    loss.backward()
    assert loss.isfinite()


def test_metrics_need_hashes(backbone: str, tmp_path: Path) -> None:
    batch = batch_of(backbone, translations(tmp_path / "t.jsonl", count=5))
    model, metrics = TASK.load(backbone), TASK.build_metrics()
    loss, outputs = TASK.step(model, batch)
    TASK.update(metrics, model, batch, outputs)
    assert set(metrics.compute()) == set(TASK.metrics)
    hashes = batch.pop("text_hashes")
    without, outputs = TASK.step(model, batch)
    if len(hashes[:, 0].unique()) == len(hashes[:, 1].unique()) == 5:
        assert without.item() == pytest.approx(loss.item())
    with pytest.raises(ValueError, match="retrieval metrics need text_hashes"):
        TASK.update(metrics, model, batch, outputs)


def test_options() -> None:
    task = Contrastive(metrics=("ndcg_5",), pooling="last", temperature=0.1, symmetric=True)
    assert rebuild(task.to_config()) == task
    assert (task.monitor, task.mode) == ("ndcg_5", "max")
    with pytest.raises(ValueError, match="unknown pooling 'means': did you mean 'mean'"):
        Contrastive(pooling="means")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature is 0"):
        Contrastive(temperature=0)


@pytest.mark.slow
def test_a_merged_model_is_one_of_sentence_transformers(backbone: str, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules

    path = translations(tmp_path / "t.jsonl", count=6)
    model = TASK.load(backbone)
    awaken(attach(model, Plan.uniform(LoRA())))
    data = SentencePairs(backbone, test=path, max_length=16)
    with torch.no_grad():
        rows = [row for batch in data.predict_dataloader() for row in TASK.predict(model, batch)]
    merge(model)
    model.save_pretrained(tmp_path / "merged")
    load_tokenizer(backbone).save_pretrained(tmp_path / "merged")
    encoder = modules.Transformer(str(tmp_path / "merged"))
    parts = [encoder, modules.Pooling(16, model.config.sentence_pooling), modules.Normalize()]
    other = sentence_transformers.SentenceTransformer(modules=parts, device="cpu")
    texts = [json.loads(line)["anchor"] for line in Path(path).read_text().splitlines()]
    expected = torch.tensor(other.encode(texts))
    torch.testing.assert_close(torch.tensor([row["anchor"] for row in rows]), expected)


def trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.mark.slow
def test_translations_are_learned(tmp_path: Path) -> None:
    seed_everything(0)
    backbone = mask_bert(tmp_path / "bert")
    train = translations(tmp_path / "train.jsonl", count=256, negatives=1)
    test = translations(tmp_path / "test.jsonl", count=30, seed=1, negatives=1)
    data = SentencePairs(
        backbone, train=train, test=test, negatives=["negative0"], batch_size=16, max_length=16
    )
    plan = Plan.uniform(LoRA(r=16, sites=("*attention.*", "ffn.*")))
    module = PELTModule(backbone, plan, TASK, lr=1e-2)
    path = tmp_path / "embeddings.jsonl"
    run = trainer(max_epochs=12, callbacks=[WritePredictions(str(path))])
    before = run.test(module, data, verbose=False)[0]["test/mrr_10"]
    run.fit(module, data)
    scores = run.test(module, data, verbose=False)[0]
    assert scores["test/mrr_10"] > max(0.8, before + 0.4)
    run.predict(module, data)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(30))
    texts = [json.loads(line) for line in Path(test).read_text().splitlines()]
    metric = Retrieval("mrr_10")  # of what is written
    names = {text: i for i, text in enumerate({v for row in texts for v in row.values()})}
    metric.update(
        *(torch.tensor([line[role] for line in lines]) for role in ("anchor", "positive")),
        *(torch.tensor([names[row[role]] for row in texts]) for role in ("anchor", "positive")),
    )
    assert metric.compute().item() == pytest.approx(scores["test/mrr_10"], abs=1e-5)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(backbone: str, tmp_path: Path) -> None:
    train = translations(tmp_path / "train.jsonl", count=48)
    found = []
    for devices, size in ((1, 8), (2, 4)):
        seed_everything(0)
        data = SentencePairs(backbone, train=train, dev=train, batch_size=size, max_length=16)
        module = PELTModule(backbone, Plan.uniform(LoRA()), TASK, lr=1e-2)
        strategy = "ddp_fork" if devices == 2 else "auto"
        run = trainer(max_epochs=2, devices=devices, strategy=strategy)
        run.fit(module, data)
        trained = {n: v.detach() for n, v in module.state_dict().items()}
        metrics = {n: v.item() for n, v in run.callback_metrics.items() if "loss" not in n}
        found.append((trained, metrics))
        if devices == 1:  # a second epoch starts from no embeddings
            assert run.validate(module, data, verbose=False)[0]["val/map"] == pytest.approx(
                metrics["val/map"], abs=1e-6
            )
    (one, scores), (two, others) = found
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-4, rtol=1e-3)
    assert scores.keys() == others.keys()
    assert others == pytest.approx(scores, abs=1e-4)
