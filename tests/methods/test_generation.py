"""Generation with gates: the cache changes nothing, and the future stays unseen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from zoo import FIRST_WORD, LAST_WORD, ZOO, build, inputs, output

from lightning_pelt import IA3, Adapter, BitFit, Gate, LoRA, Prefix, UniPELT, attach
from lightning_pelt.testing import awaken

DECODERS = [n for n, e in ZOO.items() if e.kind == "decoder"]
SEQ2SEQ = [n for n, entry in ZOO.items() if entry.kind == "seq2seq"]
MIXTURES = {"mixtral", "qwen3_moe", "deepseek_v3"}  # sums of experts round differently


def gated(name: str, gate: Gate | None = None) -> PreTrainedModel:
    methods: list[Any] = [LoRA(sites=("query", "value", "ffn.*")), Adapter(reduction_factor=2)]
    if name in MIXTURES:
        methods[0] = LoRA(sites=("query", "value"))
    if ZOO[name].interface:
        methods.append(Prefix(length=4))
    methods += [IA3(), BitFit()]
    model = build(name)
    awaken(attach(model, UniPELT(methods, gate=gate)))
    return model


def prompt(name: str, padded: bool) -> dict[str, Tensor]:
    """Words, of which decoders see the padding on the left."""
    batch = inputs(name, padded=padded)
    batch.pop("decoder_input_ids", None)
    if ZOO[name].kind == "decoder":
        batch = {key: tensor.flip(1) for key, tensor in batch.items()}
    return batch


@torch.no_grad()
def generated(model: Any, batch: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """Six words for each row, and the scores that they were chosen by."""
    result = model.generate(
        **batch,
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
        **options,
    )
    scores = result.get("sequences_scores")
    return result.sequences, torch.stack(result.logits) if scores is None else scores


CACHED = ["gpt2", "gpt_bigcode", "gptj", "bloom", "falcon", "opt", "gpt_neox", "llama", "mistral"]
CACHED += ["qwen3", "phi3", "gemma3_text", "deepseek_v3", "t5", "mt5", "bart", "mbart"]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", CACHED)
@pytest.mark.slow
def test_cache_changes_nothing(name: str, beams: int) -> None:
    model = gated(name)
    for padded in (False, True):
        batch = prompt(name, padded)
        words, scores = generated(model, batch, num_beams=beams, use_cache=True)
        again, expected = generated(model, batch, num_beams=beams, use_cache=False)
        assert torch.equal(words, again)
        torch.testing.assert_close(scores, expected, rtol=0, atol=2e-5)
    _, frozen = generated(build(name), batch, num_beams=beams)
    assert (frozen - scores).abs().max() > 1e-3, "what is attached has a say in it"


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "t5"])
def test_static_cache(name: str) -> None:
    model, batch = gated(name), prompt(name, padded=True)
    words, scores = generated(model, batch, cache_implementation="static")
    again, expected = generated(model, batch, use_cache=False)
    assert torch.equal(words, again)
    torch.testing.assert_close(scores, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "bart"])
@pytest.mark.slow
def test_rows_and_beams_do_not_mix(name: str) -> None:
    """A row alone gives what it gives in a batch."""
    model, batch = gated(name), prompt(name, padded=True)
    words, scores = generated(model, batch, num_beams=3)
    for row in range(2):
        alone = {key: tensor[row : row + 1] for key, tensor in batch.items()}
        expected, score = generated(model, alone, num_beams=3)
        assert torch.equal(words[row : row + 1], expected)
        torch.testing.assert_close(scores[row : row + 1], score, rtol=0, atol=2e-5)


def change_of_the_past(model: PreTrainedModel, name: str) -> float:
    """How much the logits of all tokens but the last change with the last one."""
    batch = inputs(name, padded=False)
    key = "input_ids" if ZOO[name].kind == "decoder" else "decoder_input_ids"
    words = batch[key].clone()
    words[:, -1] = (words[:, -1] + 7 - FIRST_WORD) % (LAST_WORD - FIRST_WORD) + FIRST_WORD
    with torch.no_grad():
        before, after = output(model, batch), output(model, {**batch, key: words})
    assert (before - after)[:, -1].abs().max() > 1e-3
    return float((before - after)[:, :-1].abs().max())


@pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ, "whisper"])
def test_the_future_does_not_reach_the_past(name: str) -> None:
    leak = change_of_the_past(gated(name), name)
    assert leak <= (1e-5 if name in MIXTURES else 1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart"])
def test_a_pooled_gate_would_leak(name: str) -> None:
    """The control: why ``auto`` is per token there."""
    assert change_of_the_past(gated(name, Gate(pool="masked")), name) > 1e-3
