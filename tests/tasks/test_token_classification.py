from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import TAGS, saved, tagged
from lightning.pytorch import Trainer
from seqeval.metrics import accuracy_score, f1_score
from small import bert, gpt2
from transformers import (
    DebertaV2Config,
    DebertaV2Model,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
    pipeline,
)

from lightning_pelt import (
    LoRA,
    PELTModule,
    Plan,
    TaggedWords,
    TokenClassification,
    WritePredictions,
)
from lightning_pelt.tasks import _windows
from lightning_pelt.tasks.token_classification import best_of_words
from lightning_pelt.utils.backbone import load_tokenizer


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    return bert(tmp_path / "bert")


def data(backbone: str, folder: Path, own: list[dict[str, Any]], **options: Any) -> TaggedWords:
    options = {"labels": TAGS, "max_length": 16, "stride": 6, "bucketed": False, **options}
    return TaggedWords(backbone, test=saved(folder / "test.jsonl", own), **options)


def test_the_model_knows_the_tags(backbone: str) -> None:
    model = TokenClassification().load(backbone, labels=TAGS)
    assert model.config.id2label == dict(enumerate(TAGS))
    assert model.config.num_labels == 4
    with pytest.raises(ValueError, match="the tag 'X' is not one of the scheme 'conll'"):
        TokenClassification().load(backbone, labels=["O", "X"])
    with pytest.raises(ValueError, match="the module has the labels"):
        TokenClassification().check_labels(TAGS, TAGS[::-1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scheme": "IOB"}, "unknown scheme 'IOB': did you mean 'IOB2'"),
        ({"metrics": ["f2"]}, "unknown metric 'f2': did you mean 'f1'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TokenClassification(**options)


def test_words_are_read_in_the_window_with_the_most_context(backbone: str, tmp_path: Path) -> None:
    own = tagged(4, seed=1)
    module = data(backbone, tmp_path, own, batch_size=4)
    (batch,) = module.predict_dataloader()
    task = TokenClassification()
    model = task.load(backbone, labels=TAGS).eval()
    with torch.no_grad():
        predictions = task.predict(model, batch, labels=TAGS)
    tokenizer = load_tokenizer(backbone)
    assert len(predictions) == 4
    for row, prediction in zip(own, predictions, strict=True):
        ids = [int(tokenizer.convert_tokens_to_ids(word)) for word in row["tokens"]]
        best: dict[int, tuple[int, torch.Tensor]] = {}
        start = 0
        while True:  # windows of 15 words and </s>
            window = ids[start : start + 15]
            with torch.no_grad():
                logits = model(torch.tensor([[*window, tokenizer.eos_token_id]])).logits[0]
            for place in range(len(window)):
                context = min(place, len(window) - 1 - place)
                if context > best.get(start + place, (-1, logits))[0]:
                    best[start + place] = context, logits[place].softmax(-1)
            if start + 15 >= len(ids):
                break
            start += 15 - 6
        expected = [best[word][1] for word in range(len(ids))]
        assert prediction["tags"] == [TAGS[int(each.argmax())] for each in expected]
        assert prediction["scores"] == pytest.approx([float(e.max()) for e in expected], abs=1e-5)


@pytest.mark.parametrize("more", [0, 2])
def test_windows_in_passes_are_windows_at_once(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    """Of sharded ranks, one with fewer windows takes as many passes as the others."""
    (batch,) = data(backbone, tmp_path, tagged(4, seed=2), batch_size=4).predict_dataloader()
    model = TokenClassification().load(backbone, labels=TAGS).eval()
    sizes: list[int] = []
    model.register_forward_hook(lambda *args: sizes.append(len(args[-1].logits)))
    count = len(batch["input_ids"])
    monkeypatch.setattr(_windows, "_is_sharded", lambda model: more > 0)
    monkeypatch.setattr(_windows, "_most_passes", lambda passes, device: passes + more)
    with torch.no_grad():
        whole = model(**_windows.window_inputs(batch)).logits
        sizes.clear()
        parts = _windows.forward(model, {**batch, "windows_at_once": 3}, ["logits"]).logits
    last = count % 3 or 3
    assert sizes == [3] * ((count - 1) // 3) + [last] * (1 + more)
    assert torch.allclose(whole, parts, atol=1e-6)


@pytest.mark.parametrize("scheme", ["conll", "IOB2"])
def test_metrics_are_those_of_seqeval(backbone: str, tmp_path: Path, scheme: Any) -> None:
    own = tagged(9, seed=3)
    module = data(backbone, tmp_path, own, batch_size=2)
    task = TokenClassification(metrics=("f1", "macro_f1", "accuracy"), scheme=scheme)
    model = task.load(backbone, labels=TAGS).eval()
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    metrics = task.build_metrics(TAGS, stage="test").clone(prefix="test/")
    assert set(metrics.keys()) == {
        f"test/{name}" for name in ("f1", "macro_f1", "accuracy", "f1_COL", "f1_NUM")
    }
    found = []
    with torch.no_grad():
        for batch in module.test_dataloader():
            loss, outputs = task.step(model, batch)
            assert loss.isfinite()
            task.update(metrics, model, batch, outputs, labels=TAGS)
        for batch in module.predict_dataloader():
            found += [row["tags"] for row in task.predict(model, batch, labels=TAGS)]
    true = [row["ner_tags"] for row in own]
    options: dict[str, Any] = {}
    if scheme == "IOB2":
        from seqeval.scheme import IOB2

        options = {"mode": "strict", "scheme": IOB2}
    assert float(metrics.compute()["test/f1"]) == pytest.approx(f1_score(true, found, **options))
    assert float(metrics.compute()["test/macro_f1"]) == pytest.approx(
        f1_score(true, found, average="macro", **options), abs=1e-6
    )
    assert float(metrics.compute()["test/accuracy"]) == pytest.approx(accuracy_score(true, found))


def test_the_loss_counts_each_word_once(backbone: str, tmp_path: Path) -> None:
    (batch,) = data(backbone, tmp_path, tagged(3, seed=4), batch_size=3).test_dataloader()
    model = TokenClassification().load(backbone, labels=TAGS).eval()
    with torch.no_grad():
        loss, outputs = TokenClassification().step(model, batch)
    read = batch["word_of_token"] >= 0
    row = batch["row_of_window"][:, None].expand_as(read)[read]
    true = batch["tags"][row, batch["word_of_token"][read]]
    expected = -outputs.logits[read].log_softmax(-1)[torch.arange(len(true)), true].mean()
    assert int(read.sum()) == int(batch["words"].sum())
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_words_without_a_token_are_outside() -> None:
    batch = {
        "word_of_token": torch.tensor([[-1, 0, 2]]),
        "row_of_window": torch.tensor([0]),
        "words": torch.tensor([4]),
    }
    logits = torch.tensor([[[0.0, 9.0, 0.0]] * 3])
    best, scores = best_of_words(logits, batch, outside=2)
    assert best.tolist() == [[1, 2, 1, 2]]
    assert scores[0, 1] == 1
    with pytest.raises(ValueError, match="with a data module such as TaggedWords"):
        best_of_words(logits, {}, outside=0)


def test_predictions_have_entities_unless_no_metric_counts_them(
    backbone: str, tmp_path: Path
) -> None:
    own = [{"tokens": ["red", "green", "one"], "ner_tags": ["B-COL", "I-COL", "B-NUM"]}]
    (batch,) = data(backbone, tmp_path, own).predict_dataloader()
    task = TokenClassification()
    model = task.load(backbone, labels=TAGS).eval()

    def by_word(module: Any, args: Any, output: Any) -> Any:
        output.logits = torch.tensor([[[0, 2.0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 4.0], [0.0] * 4]])
        return output

    model.register_forward_hook(by_word)
    (row,) = task.predict(model, batch)  # names from the model's configuration
    shares = [float(torch.tensor([s, 0.0, 0, 0]).softmax(0)[0]) for s in (2.0, 3, 4)]
    assert row["tags"] == own[0]["ner_tags"]
    assert row["scores"] == pytest.approx(shares)
    assert row["entities"] == [
        {"type": "COL", "start": 0, "end": 2, "score": pytest.approx(sum(shares[:2]) / 2)},
        {"type": "NUM", "start": 2, "end": 3, "score": pytest.approx(shares[2])},
    ]
    (row,) = TokenClassification(metrics=("accuracy",)).predict(model, batch, labels=list("WXYZ"))
    assert row.keys() == {"tags", "scores"}
    assert row["tags"] == ["X", "Y", "Z"]


@pytest.mark.slow
def test_predictions_are_those_of_the_pipeline(backbone: str, tmp_path: Path) -> None:
    own = [{"tokens": ["red", "one", "yes"], "ner_tags": ["O"] * 3}]
    (batch,) = data(backbone, tmp_path, own).predict_dataloader()
    task = TokenClassification()
    model = task.load(backbone, labels=TAGS).eval()
    with torch.no_grad():
        (row,) = task.predict(model, batch, labels=TAGS)
    pipe: Any = pipeline(
        "token-classification", model=model, tokenizer=load_tokenizer(backbone), ignore_labels=[]
    )
    tokens = pipe("red one yes")[:3]
    assert [token["entity"] for token in tokens] == row["tags"]
    assert [token["score"] for token in tokens] == pytest.approx(row["scores"], abs=1e-5)


def families(folder: Path) -> dict[str, Any]:
    """Backbones of other families, with the words' tokenizer."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "vocab_size": 14, "initializer_range": 0.3}
    tokenizer = load_tokenizer(bert(folder / "bert"))
    made = {
        "roberta": RobertaModel(RobertaConfig(**sizes, max_position_embeddings=40, pad_token_id=0)),
        "deberta": DebertaV2Model(
            DebertaV2Config(**sizes, relative_attention=True, pos_att_type=["p2c", "c2p"])
        ),
        "llama": LlamaModel(LlamaConfig(**sizes, num_key_value_heads=1)),
    }
    for name, model in made.items():
        model.save_pretrained(folder / name)
        tokenizer.padding_side = "left" if name == "llama" else "right"
        tokenizer.save_pretrained(folder / name)
    return {"gpt2": gpt2(folder / "gpt2"), **{name: str(folder / name) for name in made}}


@pytest.mark.slow
def test_rows_are_independent_in_every_family(tmp_path: Path) -> None:
    """A row of a batch, with padding on the tokenizer's side, is predicted as it is alone."""
    for backbone in families(tmp_path).values():
        module = data(backbone, tmp_path, tagged(3, seed=5), batch_size=3)
        task = TokenClassification()
        model = task.load(backbone, labels=TAGS).eval()
        (batch,) = module.predict_dataloader()
        module.batch_size = 1
        with torch.no_grad():
            together = task.predict(model, batch, labels=TAGS)
            alone = [task.predict(model, b, labels=TAGS) for b in module.predict_dataloader()]
        for row, (single,) in zip(together, alone, strict=True):
            assert row["tags"] == single["tags"]
            assert row["scores"] == pytest.approx(single["scores"], abs=1e-4)


@pytest.mark.slow
def test_a_tiny_model_learns_and_writes_a_line_per_row(backbone: str, tmp_path: Path) -> None:
    module_data = TaggedWords(
        backbone,
        train=saved(tmp_path / "train.jsonl", tagged(300, seed=6, most=30)),
        test=saved(tmp_path / "test.jsonl", tagged(21, seed=7)),
        max_length=16,
        stride=4,
        batch_size=16,
        limit_eval=20,
    )
    labels = module_data.labels
    assert sorted(labels) == sorted(TAGS)
    module = PELTModule(
        backbone,
        Plan.uniform(LoRA(r=8, alpha=16)),
        TokenClassification(metrics=("f1", "accuracy")),
        labels=labels,
        lr=2e-2,
    )
    trainer = Trainer(
        max_epochs=8,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[WritePredictions(str(tmp_path / "lines.jsonl"))],
    )
    trainer.fit(module, module_data)
    (tested,) = trainer.test(module, module_data, verbose=False)
    assert tested["test/f1"] > 0.8
    trainer.predict(module, module_data)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    test = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert len(lines) == 20
    true = [test[line["row"]]["ner_tags"] for line in lines]
    found = [line["tags"] for line in lines]
    assert tested["test/f1"] == pytest.approx(f1_score(true, found), abs=1e-6)
