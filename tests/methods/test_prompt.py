"""Prompts against models that are fed the same embeddings by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from zoo import ZOO, build, inputs, output

from lightning_pelt import Gate, LoRA, Plan, Prompt, attach
from lightning_pelt.testing import MethodConformance, awaken, tiny_bert, tiny_gpt2

FAMILIES = ["bert", "roberta", "distilbert", "modernbert", "t5", "bart"]


class Suite(MethodConformance):
    def models(self) -> dict[str, Callable[[], PreTrainedModel]]:
        return {
            "bert": tiny_bert,
            "t5": lambda: build("t5"),
            "bart": lambda: build("bart"),
        }

    def inputs(self, model: PreTrainedModel) -> dict[str, Tensor]:
        return inputs(model.config.model_type)

    def test_finds_sites(self, model: PreTrainedModel) -> None:
        """One place, in front of all blocks."""
        assert len(self.method.where(self.attach(model).anatomy)) == 1

    def test_padding_changes_nothing(self, model: PreTrainedModel) -> None:
        batch = self.inputs(model)
        encoder = ("input_ids", "attention_mask")
        more = {
            n: torch.nn.functional.pad(t, (0, 4)) if n in encoder else t for n, t in batch.items()
        }
        self.attach(model)
        with torch.no_grad():
            short, long = self.output(model, batch), self.output(model, more)
        torch.testing.assert_close(long, short, rtol=0, atol=2e-6)


class TestPrompt(Suite):
    method = Prompt(length=4)


@pytest.mark.slow  # prompts: TestPrompt
class TestGatedPrompt(Suite):
    compiled = ("bert",)
    method = Prompt(length=4, gate=Gate())


@pytest.mark.parametrize("name", FAMILIES)
def test_acts_in_front_of_every_encoder(name: str) -> None:
    model, batch = build(name), inputs(name)
    with torch.no_grad():
        base = output(model, batch)
        attach(model, Plan.uniform(Prompt(length=4)))
        prompted = output(model, batch)
    assert prompted.shape == base.shape
    assert (prompted - base).abs().max() > 1e-4


def test_t5_is_fed_the_prompt_by_hand() -> None:
    """Longer embeddings and a longer mask, for encoder and decoder alike."""
    model, batch = build("t5"), inputs("t5")
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    attachment = attach(model, Plan.uniform(Prompt(length=4)))
    (prompt,) = attachment.parameter_groups()["prompt"]
    with torch.no_grad():
        ours = output(model, batch)
        front = prompt.expand(len(embeds), -1, -1).clone()
        attachment.detach()
        by_hand = model(
            inputs_embeds=torch.cat([front, embeds], 1),
            attention_mask=torch.nn.functional.pad(batch["attention_mask"], (4, 0), value=1),
            decoder_input_ids=batch["decoder_input_ids"],
        ).logits
    torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-6)


WORDS = torch.tensor([7, 12, 5])
SCALED = {"scale_embedding": True}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in [*FAMILIES, "xlm-roberta", "deberta-v2", "mpnet", "umt5"]),
        *((name, SCALED) for name in ["bart", "mbart", "pegasus", "marian"]),
    ],
)
def test_a_prompt_of_words_is_these_words(name: str, options: dict[str, Any]) -> None:
    """Whatever an encoder does with embeddings: Marian scales those of words in its forward."""
    entry = ZOO[name]
    model = dataclasses.replace(entry, options={**entry.options, **options}).build(task=False)
    batch = inputs(name)
    front = WORDS.expand(2, -1)
    words = {**batch, "input_ids": torch.cat([front, batch["input_ids"]], 1)}
    words["attention_mask"] = torch.cat([torch.ones_like(front), batch["attention_mask"]], 1)
    expected = model(**words).last_hidden_state
    base = model(**batch).last_hidden_state
    rows = model.get_input_embeddings()(WORDS)

    attachment = attach(model, Plan.uniform(Prompt(length=3, gate=Gate(learned=False))))
    attachment.parameter_groups()["prompt"][0].copy_(rows)
    found = model(**batch).last_hidden_state
    expected = expected[:, -found.shape[1] :]
    real = batch["attention_mask"].bool() if entry.kind == "encoder" else slice(None)
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=2e-5)
    (gate,) = attachment.gates.values()
    gate.set_open(0.0)
    assert torch.equal(model(**batch).last_hidden_state, base)


@torch.no_grad()
def test_padding_on_the_left() -> None:
    """RoBERTa counts the positions of real tokens, and so it does behind a prompt."""
    model = build("roberta", task=False)
    awaken(attach(model, Plan.uniform(Prompt(length=3))))
    ids, pad = torch.tensor([[8, 9, 10]]), torch.zeros(1, 2, dtype=torch.long)
    mask = torch.ones_like(ids)
    right = model(torch.cat([ids, pad], 1), torch.cat([mask, pad], 1)).last_hidden_state[:, :3]
    left = model(torch.cat([pad, ids], 1), torch.cat([pad, mask], 1)).last_hidden_state[:, 2:]
    torch.testing.assert_close(left, right, rtol=0, atol=2e-6)


@torch.no_grad()
def test_the_decoder_is_not_prompted() -> None:
    """It looks words up in the same table, which may be the same module."""
    model: Any = build("t5")
    batch = inputs("t5")
    awaken(attach(model, Plan.uniform(Prompt(length=4))))
    expected = output(model, batch)
    model.decoder.embed_tokens = model.encoder.embed_tokens
    assert torch.equal(output(model, batch), expected)


def test_bert_pools_its_own_first_token() -> None:
    model = tiny_bert()
    tokens = torch.arange(3, 11)[None]
    embeds = model.get_input_embeddings()(tokens).detach()
    attachment = attach(model, Plan.uniform(Prompt(length=4)))
    (prompt,) = attachment.parameter_groups()["prompt"]
    with torch.no_grad():
        ours = model(input_ids=tokens).logits
        front = prompt[None].clone()
        attachment.detach()
        hidden = model.bert(inputs_embeds=torch.cat([front, embeds], 1)).last_hidden_state[:, 4:]
        by_hand = model.classifier(model.bert.pooler(hidden))
    torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-6)


def test_generation_equals_stepwise_argmax() -> None:
    model = build("t5")
    awaken(attach(model, Plan.uniform(Prompt(length=4), LoRA())))
    batch = inputs("t5")
    generated = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
    )
    with torch.no_grad():
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=generated[:, :1],
        ).logits[:, -1]
    forbidden = torch.zeros_like(logits)
    forbidden[:, model.generation_config.eos_token_id] = float("-inf")
    assert torch.equal((logits + forbidden).argmax(-1), generated[:, 1])


def test_the_vocabulary_is_copied() -> None:
    model = tiny_bert()
    attachment = attach(model, Plan.uniform(Prompt(length=4, init="vocabulary")))
    (prompt,) = attachment.parameter_groups()["prompt"]
    assert torch.equal(prompt, model.get_input_embeddings().weight[:4])
    attachment.detach()
    with pytest.raises(ValueError, match="longer than the vocabulary of 100"):
        attach(model, Plan.uniform(Prompt(length=101, init="vocabulary")))
    assert not any("pelt" in name for name in model.state_dict())


def test_the_random_start_is_uniform() -> None:
    attachment = attach(build("t5"), Plan.uniform(Prompt(length=100)))
    (prompt,) = attachment.parameter_groups()["prompt"]
    assert 0.49 < prompt.abs().max() <= 0.5
    assert prompt.var().item() == pytest.approx(1 / 12, rel=0.1)


def test_decoders_are_pointed_to_prefix() -> None:
    with pytest.raises(ValueError, match=r"gpt2 is a decoder.*use Prefix"):
        attach(tiny_gpt2(), Plan.uniform(Prompt()))


@pytest.mark.parametrize("name", ["electra", "vit", "wav2vec2", "whisper", "clip"])
def test_models_without_embeddings_of_words_are_refused(name: str) -> None:
    model = build(name)
    names = set(model.state_dict())
    with pytest.raises(ValueError, match=rf"^{name} has no token embeddings.*use Prefix"):
        attach(model, Plan.uniform(Prompt(length=4)))
    assert set(model.state_dict()) == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length=0"),
        ({"init": "vocab"}, "did you mean 'vocabulary'"),
        ({"gate": Gate(pool="token")}, r"pool='token'.*use pool='masked', or 'all'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompt(**options)


@torch.no_grad()
@pytest.mark.parametrize("task", [True, False], ids=["head", "base"])
@pytest.mark.parametrize("name", ["bert", "distilbert", "deberta-v2", "modernbert"])
def test_outputs_of_every_block_have_the_tokens_of_the_input(name: str, task: bool) -> None:
    model = build(name, task=task)
    if model.config.model_type != "deberta-v2":
        model.set_attn_implementation("eager")
    batch, options = inputs(name), {"output_hidden_states": True, "output_attentions": True}
    shapes = _shapes(model(**batch, **options))
    attachment = attach(model, Plan.uniform(Prompt(length=3)))
    awaken(attachment)
    found = model(**batch, **options)
    assert _shapes(found) == shapes
    as_tuple = model(**batch, **options, return_dict=False)
    assert _shapes(as_tuple) == _shapes(tuple(found.values()))
    plain = model(**batch)
    assert torch.equal(plain[0], found[0]), "what is asked for changes nothing"


def _shapes(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.shape
    values = output.values() if hasattr(output, "values") else output
    return [_shapes(value) for value in values]


@torch.no_grad()
@pytest.mark.parametrize("name", ["deberta", "deberta-v2"])
def test_deberta_returns_its_own_tokens(name: str) -> None:
    """Its base reads the last of the hidden states, not the result, of its stack."""
    model: Any = build(name, task=False)
    batch = inputs(name)
    attachment = attach(model, Plan.uniform(Prompt(length=3)))
    awaken(attachment)
    seen: list[Tensor] = []
    model.encoder.layer[-1].register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    assert torch.equal(model(**batch).last_hidden_state, seen[0][:, 3:])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["keys", "pairs", "added", "lowest"])
def test_masks_of_every_kind(kind: str) -> None:
    batch = inputs("bert")
    model = build("bert")
    awaken(attach(model, Plan.uniform(Prompt(length=3, gate=Gate()))))
    seen = batch["attention_mask"].bool()
    masks = {
        "keys": seen[:, None, None],
        "pairs": (seen[:, None] & seen[:, :, None])[:, None],
        "added": torch.where(seen[:, None, None], 0.0, -1e4),
        "lowest": torch.where(seen[:, None, None], 0.0, torch.finfo(torch.float32).min),
    }
    expected = model(**batch).logits
    found = model(input_ids=batch["input_ids"], attention_mask=masks[kind]).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_arguments_without_names() -> None:
    model: Any = build("bert", task=False)
    awaken(attach(model, Plan.uniform(Prompt(length=3))))
    batch = inputs("bert")
    segments = torch.ones_like(batch["input_ids"])
    named = model(**batch, token_type_ids=segments).last_hidden_state
    unnamed = model(batch["input_ids"], batch["attention_mask"], segments).last_hidden_state
    assert torch.equal(unnamed, named)
    assert not torch.equal(model(**batch).last_hidden_state, named)


@torch.no_grad()
def test_prompt_and_tokens_beyond_the_positions() -> None:
    model = tiny_bert()  # 32 positions
    with pytest.raises(ValueError, match=r"length=32.*bert has 32: use a shorter prompt"):
        attach(model, Plan.uniform(Prompt(length=32)))
    attachment = attach(model, Plan.uniform(Prompt(length=20, gate=Gate())))
    tokens = torch.arange(3, 15)[None]
    assert model(input_ids=tokens).logits.isfinite().all()
    more = torch.arange(3, 16)[None]
    with pytest.raises(ValueError, match=r"13 tokens need 33 positions.*32: use max_length=12"):
        model(input_ids=more)
    (gate,) = attachment.gates.values()
    gate.set_open(0.0)
    assert model(input_ids=more).logits.isfinite().all(), "a closed prompt takes no positions"
    relative = build("t5")
    attach(relative, Plan.uniform(Prompt(length=100)))
