from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_pelt.tasks import CausalLM
from lightning_pelt.tasks._tokens import count, left_padded, token_loss


def explicit(model: Any, row: list[int], learned: list[bool]) -> list[float]:
    """Log-probabilities of the learned tokens of one unpadded row, but never of its first."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row])).logits[0].log_softmax(-1)
    return [float(logits[t - 1, row[t]]) for t in range(1, len(row)) if learned[t]]


def test_perplexity_weighs_tokens_over_batches_of_different_lengths(gpt2: str, encode: Any) -> None:
    task = CausalLM()
    model = task.load(gpt2)
    texts = [["one two three red green blue", "no"], ["yes"]]
    metrics, every = task.build_metrics().clone(prefix="val/"), []
    for part in texts:
        batch = encode(part)
        with torch.no_grad():
            loss, outputs = task.step(model, batch)
            here = []
            for text in part:
                row = encode([text])["input_ids"][0].tolist()
                here += explicit(model, row, [True] * len(row))
        assert float(loss) == pytest.approx(-sum(here) / len(here), rel=1e-5)
        task.update(metrics, model, batch, outputs)
        every += here
    by_hand = math.exp(-sum(every) / len(every))
    assert float(metrics.compute()["val/perplexity"]) == pytest.approx(by_hand, rel=1e-5)


def test_labels_choose_what_is_learned(gpt2: str, encode: Any) -> None:
    task = CausalLM()
    model = task.load(gpt2)
    batch = encode(["one two yes no"])
    row = batch["input_ids"][0].tolist()
    batch["labels"] = torch.tensor([[-100, -100, *row[2:]]])
    loss, _ = task.step(model, batch)
    learned = explicit(model, row, [False, False, True, True, True])
    assert len(learned) == 3
    assert loss.item() == pytest.approx(-sum(learned) / 3, rel=1e-5)
    assert loss.item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_one_unlikely_token_costs_much_but_not_infinity() -> None:
    logits = torch.zeros(1, 10, 2)
    logits[0, :, 1] = -200.0  # softmax gives the second token 0, log-softmax gives it -200
    labels = torch.tensor([[1] + [0] * 9])
    metrics = CausalLM().build_metrics()
    metrics.update(token_loss(logits, labels), count(labels))
    assert float(metrics.compute()["perplexity"].log()) == pytest.approx(200 / 10, rel=1e-5)


def test_a_nan_loss_shows_in_perplexity() -> None:
    metrics = CausalLM().build_metrics()
    metrics.update(torch.tensor(1.0), torch.tensor(3))
    metrics.update(torch.tensor(float("nan")), torch.tensor(3))
    assert math.isnan(float(metrics.compute()["perplexity"]))


def test_all_padding_teaches_nothing(gpt2: str) -> None:
    task = CausalLM()
    model = task.load(gpt2)
    ids = torch.zeros(1, 4, dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids - 100}
    loss, _ = task.step(model, batch)
    loss.backward()
    assert float(loss) == 0
    assert all(float(p.grad.abs().sum()) == 0 for p in model.parameters() if p.grad is not None)


def test_padding_moves_to_the_left_and_shrinks_to_the_longest_row() -> None:
    ids = torch.tensor([[5, 6, 0, 0, 0], [0, 0, 7, 8, 9], [4, 0, 0, 0, 0]])
    moved, mask = left_padded(ids, (ids != 0).long())
    assert moved.tolist() == [[0, 5, 6], [7, 8, 9], [0, 0, 4]]
    assert mask.tolist() == [[0, 1, 1], [1, 1, 1], [0, 0, 1]]


def continued(model: Any, ids: list[int], steps: int) -> list[int]:
    """Argmax continuation of one unpadded row without a cache, up to the end token (1)."""
    row = list(ids)
    for _ in range(steps):
        row.append(int(model(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
        if row[-1] == 1:
            break
    return row[len(ids) :]


PROMPTS = ["one two three red green", "blue", "no maybe"]


def unended(word_tokenizer: Any, texts: list[str]) -> dict[str, torch.Tensor]:
    """A right-padded batch without end tokens, as prompts are."""
    rows = [word_tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return dict(word_tokenizer.pad({"input_ids": rows}, padding=True, return_tensors="pt"))


@pytest.mark.parametrize("beams", [1, 3])
def test_padding_does_not_change_a_continuation(gpt2: str, word_tokenizer: Any, beams: int) -> None:
    task = CausalLM(max_new_tokens=4, num_beams=beams)
    model = task.load(gpt2)
    together = task.predict(model, unended(word_tokenizer, PROMPTS), tokenizer=word_tokenizer)
    alone = [
        task.predict(model, unended(word_tokenizer, [text]), tokenizer=word_tokenizer)[0]
        for text in PROMPTS
    ]
    assert together == alone


def test_predictions_are_the_greedy_continuations(gpt2: str, word_tokenizer: Any) -> None:
    task = CausalLM(max_new_tokens=4)
    model = task.load(gpt2)
    rows = task.predict(model, unended(word_tokenizer, PROMPTS), tokenizer=word_tokenizer)
    expected = [
        continued(model, word_tokenizer.encode(text, add_special_tokens=False), 4)
        for text in PROMPTS
    ]
    texts = [word_tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    assert rows == [{"text": text} for text in texts]
    assert any(texts)


def test_answers_of_a_labelled_batch_stay_unseen(gpt2: str, word_tokenizer: Any) -> None:
    task = CausalLM(max_new_tokens=4)
    model = task.load(gpt2)
    batch = unended(word_tokenizer, ["one two yes no", "red blue"])
    prompt_lengths, labels = [2, 1], batch["input_ids"].clone()
    for row, length in enumerate(prompt_lengths):
        labels[row, :length] = -100
    labels[batch["attention_mask"] == 0] = -100
    found = task.predict(model, {**batch, "labels": labels}, tokenizer=word_tokenizer)
    assert found == task.predict(
        model, unended(word_tokenizer, ["one two", "red"]), tokenizer=word_tokenizer
    )


def test_a_fully_labelled_text_is_continued_at_its_end(gpt2: str, word_tokenizer: Any) -> None:
    task = CausalLM(max_new_tokens=4)
    model = task.load(gpt2)
    batch = unended(word_tokenizer, ["one two"])
    labelled = {**batch, "labels": batch["input_ids"]}
    assert task.predict(model, labelled, tokenizer=word_tokenizer) == task.predict(
        model, batch, tokenizer=word_tokenizer
    )


def test_a_row_without_tokens_is_continued_from_padding(gpt2: str, word_tokenizer: Any) -> None:
    task = CausalLM(max_new_tokens=3)
    model = task.load(gpt2)
    ids = torch.tensor([[3, 4], [0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    rows = task.predict(model, batch, tokenizer=word_tokenizer)
    expected = word_tokenizer.decode(continued(model, [0], 3), skip_special_tokens=True)
    assert rows[1] == {"text": expected}
    assert len(rows) == 2


# Exact match of the last answer.


def conversation(row: list[int], trained: list[int], width: int) -> dict[str, torch.Tensor]:
    """A right-padded row in which the tokens at the indices ``trained`` are trained."""
    ids = torch.zeros(1, width, dtype=torch.long)
    ids[0, : len(row)] = torch.tensor(row)
    mask = (torch.arange(width) < len(row)).long()[None]
    labels = torch.full_like(ids, -100)
    labels[0, trained] = ids[0, trained]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def test_exact_match_compares_the_last_answer_with_what_follows_all_before(
    gpt2: str, word_tokenizer: Any
) -> None:
    task = CausalLM(("exact_match",), max_new_tokens=6)
    model = task.load(gpt2)
    first, question = [5, 6, 7, 1], [8, 9]  # the first answer is a part of the prompt
    answer = continued(model, first + question, 6)
    rows = [
        conversation([*first, *question, *answer], [2, 3, *range(6, 6 + len(answer))], 14),
        conversation([*first, *question, 4, 1], [2, 3, 6, 7], 14),
    ]
    batch = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    with torch.no_grad():
        loss, outputs = task.step(model, batch)
        metrics = task.build_metrics(stage="test")
        task.update(metrics, model, batch, outputs, tokenizer=word_tokenizer)
        samples = task.samples(model, batch, tokenizer=word_tokenizer)
    found = metrics.compute()
    assert float(found["exact_match"]) == 0.5
    assert float(found["perplexity"]) == pytest.approx(math.exp(float(loss)), rel=1e-5)
    text = word_tokenizer.decode(answer, skip_special_tokens=True)
    assert [row["generated"] for row in samples] == [text, text]
    assert [row["target"] for row in samples] == [text, word_tokenizer.decode([4])]
    assert samples[0]["prompt"] == word_tokenizer.decode(first + question)


def test_generation_is_off_in_validation_unless_it_is_asked_for() -> None:
    task = CausalLM(("exact_match",))
    assert task.monitor == "perplexity" and task.mode == "min"
    assert set(task.build_metrics(stage="val")) == {"perplexity"}
    assert set(task.build_metrics(stage="test")) == {"perplexity", "exact_match"}
    task = CausalLM(("exact_match",), generate_in_validation=True)
    assert task.monitor == "exact_match" and task.mode == "max"
    assert set(task.build_metrics(stage="val")) == {"perplexity", "exact_match"}
    assert CausalLM(["perplexity", "exact_match"], generate_in_validation=True).mode == "min"
    with pytest.raises(ValueError, match="unknown metric 'exact_mach': did you mean 'exact_match'"):
        CausalLM(("exact_mach",))


def test_generation_stops_at_the_tokens_of_stop(gpt2: str, word_tokenizer: Any) -> None:
    model = CausalLM().load(gpt2)
    batch = unended(word_tokenizer, ["three"])
    (whole,) = CausalLM(max_new_tokens=6).predict(model, batch, tokenizer=word_tokenizer)
    words = whole["text"].split()
    assert len(words) > 2 and words[0] != words[1]
    stopped = CausalLM(max_new_tokens=6, stop=words[1])
    assert stopped == CausalLM(max_new_tokens=6, stop=[words[1]])
    (short,) = stopped.predict(model, batch, tokenizer=word_tokenizer)
    assert short["text"] == " ".join(words[:2])
    with pytest.raises(ValueError, match="splits 'one two' of stop into"):
        CausalLM(stop=("one two",)).predict(model, batch, tokenizer=word_tokenizer)


def test_packed_rows_and_rows_without_labels_have_no_samples(
    gpt2: str, word_tokenizer: Any
) -> None:
    task = CausalLM(("exact_match",))
    model = task.load(gpt2)
    batch = unended(word_tokenizer, PROMPTS[:1])
    with pytest.raises(ValueError, match="the batch has none"):
        task.samples(model, batch, tokenizer=word_tokenizer)
    ids = batch["input_ids"]
    packed = {"input_ids": ids, "labels": ids, "position_ids": torch.zeros_like(ids)}
    with pytest.raises(ValueError, match="the rows of this batch are packed"):
        task.samples(model, packed, tokenizer=word_tokenizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_batch_without_trained_tokens_is_no_nan_in_half_precision(
    gpt2: str, dtype: torch.dtype
) -> None:
    task = CausalLM()
    model = task.load(gpt2, dtype=dtype)
    batch = conversation([5, 6, 7, 1], [], 6)
    loss, outputs = task.step(model, batch)
    loss.backward()
    assert loss.dtype == torch.float32 and float(loss) == 0
    assert all(float(p.grad.abs().sum()) == 0 for p in model.parameters() if p.grad is not None)
    metrics = task.build_metrics()
    task.update(metrics, model, batch, outputs)
    metrics.update(torch.tensor(2.0), torch.tensor(3))  # another batch
    assert float(metrics.compute()["perplexity"]) == pytest.approx(math.exp(2.0))


def test_metrics_count_on_in_a_module_of_half_precision() -> None:
    task = CausalLM(("exact_match",))
    owner = torch.nn.ModuleDict({"test": task.build_metrics(stage="test").clone(prefix="test/")})
    owner.to(torch.bfloat16)  # as Lightning's bf16-true
    metrics = dict(owner["test"].items(keep_base=True, copy_state=False))
    for part in range(3):
        owner["test"].reset()
        for _ in range(400):
            metrics["exact_match"].update(torch.tensor([1.0, 0.0, 0.0]))
            metrics["perplexity"].update(torch.tensor(1.0 + part), torch.tensor(7))
        found = owner["test"].compute()
        assert float(found["test/exact_match"]) == pytest.approx(1 / 3, rel=1e-6)
        assert float(found["test/perplexity"].log()) == pytest.approx(1.0 + part, rel=1e-5)
