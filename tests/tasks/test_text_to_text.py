from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lightning_pelt.tasks import TextToText

LABELS = ["no", "yes"]


def test_the_loss_is_the_models_own(t5: str, encode: Any) -> None:
    task = TextToText()
    model = task.load(t5)
    batch = encode(["one two", "red green blue"], ["yes", "no maybe one"])
    loss, _ = task.step(model, batch)
    assert float(loss) == pytest.approx(float(model(**batch).loss), rel=1e-6)


def test_models_that_cannot_shift_labels_outside_forward(
    t5: str, encode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = TextToText()
    model = task.load(t5)
    batch = encode(["one two"], ["yes no"])
    expected = float(task.step(model, batch)[0])
    monkeypatch.delattr(type(model), "prepare_decoder_input_ids_from_labels")
    assert float(task.step(model, batch)[0]) == pytest.approx(expected, rel=1e-6)


def test_a_batch_without_targets_teaches_nothing(t5: str, encode: Any) -> None:
    task = TextToText(generate_in_validation=False)
    model = task.load(t5)
    batch = {**encode(["one two"]), "labels": torch.full((1, 3), -100)}
    loss, outputs = task.step(model, batch)
    loss.backward()
    assert float(loss) == 0
    assert all(p.grad is None or float(p.grad.abs().sum()) == 0 for p in model.parameters())
    metrics = task.build_metrics()
    task.update(metrics, model, batch, outputs)
    full = encode(["one"], ["yes"])
    loss, outputs = task.step(model, full)
    task.update(metrics, model, full, outputs)
    assert float(metrics.compute()["perplexity"]) == pytest.approx(math.exp(float(loss)), rel=1e-5)


def test_perplexity_weighs_tokens_not_batches(t5: str, encode: Any) -> None:
    task = TextToText(generate_in_validation=False)
    model = task.load(t5)
    batches = [encode(["one"], ["yes"]), encode(["two", "red"], ["no maybe one two", "blue"])]
    metrics = task.build_metrics().clone(prefix="val/")
    log_probabilities = []
    for batch in batches:
        _, outputs = task.step(model, batch)
        task.update(metrics, model, batch, outputs)
        for row, labels in zip(model(**batch).logits, batch["labels"].tolist(), strict=True):
            for position, label in enumerate(labels):
                if label != -100:
                    log_probabilities.append(float(row[position].log_softmax(-1)[label]))
    assert len(log_probabilities) == 2 + 5 + 2
    by_hand = math.exp(-sum(log_probabilities) / len(log_probabilities))
    assert float(metrics.compute()["val/perplexity"]) == pytest.approx(by_hand, rel=1e-5)


def greedy(model: Any, ids: torch.Tensor, steps: int) -> list[int]:
    """Argmax tokens one at a time, without a cache, up to the end token."""
    decoder = [0]
    for _ in range(steps):
        logits = model(input_ids=ids, decoder_input_ids=torch.tensor([decoder])).logits
        decoder.append(int(logits[0, -1].argmax()))
        if decoder[-1] == 1:
            break
    return decoder[1:]


def test_predictions_are_the_greedy_texts(t5: str, encode: Any, word_tokenizer: Any) -> None:
    task = TextToText(max_new_tokens=5)
    model = task.load(t5)
    texts = ["one two three red", "green", "maybe 1.5 no"]
    with torch.no_grad():
        rows = task.predict(model, encode(texts), tokenizer=word_tokenizer)
        alone = [greedy(model, encode([text])["input_ids"], 5) for text in texts]
    expected = [word_tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in alone]
    assert rows == [{"text": text} for text in expected]
    assert any(expected)


def test_labels_are_not_shown_to_a_prediction(t5: str, encode: Any, word_tokenizer: Any) -> None:
    task = TextToText(max_new_tokens=4, num_beams=3)
    model = task.load(t5)
    with torch.no_grad():
        blind = task.predict(model, encode(["red"]), tokenizer=word_tokenizer)
        labelled = task.predict(model, encode(["red"], ["one"]), tokenizer=word_tokenizer)
    assert blind == labelled
    assert len(blind) == 1


def test_generating_without_a_tokenizer_says_so(t5: str, encode: Any) -> None:
    task = TextToText()
    with pytest.raises(ValueError, match="pass tokenizer="):
        task.predict(task.load(t5), encode(["red"]))


class Writes:
    """A model that writes given texts; ``generate`` starts with the decoder's start token."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self.ids = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]

    def generate(self, **options: Any) -> torch.Tensor:
        return torch.cat([torch.zeros(len(self.ids), 1, dtype=torch.long), self.ids], 1)


def scores(task: TextToText, tokenizer: Any, encode: Any, **texts: list[str]) -> dict[str, float]:
    metrics = task.build_metrics(LABELS, stage="test").clone(prefix="test/")
    written, targets = texts["written"], texts["targets"]
    for part in (slice(0, 3), slice(3, 4), slice(4, None)):
        batch = encode(["one"] * len(targets[part]), targets[part])
        model: Any = Writes(tokenizer, written[part])
        outputs = SimpleNamespace(loss=torch.tensor(1.0))
        task.update(metrics, model, batch, outputs, labels=LABELS, tokenizer=tokenizer)
    return {k.removeprefix("test/"): float(v) for k, v in metrics.compute().items()}


def test_exact_match_compares_whole_texts(encode: Any, word_tokenizer: Any) -> None:
    found = scores(
        TextToText(),
        word_tokenizer,
        encode,
        written=["yes no", "yes", "red", "", "blue"],
        targets=["yes no", "yes no", "red", "one", "green"],
    )
    assert found == pytest.approx({"exact_match": 2 / 5, "perplexity": math.e})


def test_label_metrics_agree_with_sklearn_on_the_texts(encode: Any, word_tokenizer: Any) -> None:
    written = ["yes", "no", "maybe", "yes", "no", "yes", "no", "maybe"]  # maybe is no label
    targets = ["yes", "no", "no", "no", "yes", "yes", "no", "yes"]
    names = ("accuracy", "f1", "matthews", "macro_f1", "exact_match")
    found = scores(
        TextToText(metrics=names), word_tokenizer, encode, written=written, targets=targets
    )
    found.pop("perplexity")
    assert found == pytest.approx(
        {
            "accuracy": accuracy_score(targets, written),
            "exact_match": accuracy_score(targets, written),
            "f1": f1_score([t == "yes" for t in targets], [w == "yes" for w in written]),
            "matthews": matthews_corrcoef(targets, written),
            "macro_f1": f1_score(targets, written, average="macro"),
        },
        abs=1e-6,
    )


def test_numbers_are_read_from_the_texts(encode: Any, word_tokenizer: Any) -> None:
    written = ["1.5", "2.0", "red", "2.0", "1.5"]  # a word counts as -1
    targets = ["2.0", "2.0", "1.5", "1.5", "1.5"]
    found = scores(
        TextToText(metrics=("pearson", "spearman", "mse")),
        word_tokenizer,
        encode,
        written=written,
        targets=targets,
    )
    a, b = [1.5, 2.0, -1.0, 2.0, 1.5], [2.0, 2.0, 1.5, 1.5, 1.5]
    assert found["pearson"] == pytest.approx(pearsonr(a, b).statistic, abs=1e-5)
    assert found["spearman"] == pytest.approx(spearmanr(a, b).statistic, abs=1e-5)
    assert found["mse"] == pytest.approx((0.25 + 0 + 6.25 + 0.25 + 0) / 5)


def test_label_metrics_need_labels() -> None:
    with pytest.raises(ValueError, match="use 'exact_match'"):
        TextToText(metrics=("accuracy",)).build_metrics(None)


def test_quick_validation_does_not_generate(t5: str, encode: Any) -> None:
    task = TextToText(generate_in_validation=False)
    assert set(task.build_metrics(stage="val")) == {"perplexity"}
    assert set(task.build_metrics(stage="test")) == {"exact_match", "perplexity"}
    model = task.load(t5)
    batch = encode(["one"], ["yes"])
    metrics = task.build_metrics()
    task.update(metrics, model, batch, task.step(model, batch)[1])  # no tokenizer: it would raise
    assert float(metrics.compute()["perplexity"]) > 1
