"""Which models keep the examples of packed rows apart, and what the others are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families.catalogue import by_label
from torch import nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)
from zoo import ZOO, build

from lightning_pelt.anatomy.attention_mask import first_of_each
from lightning_pelt.anatomy.packed_rows import packing_fault

DECODERS = [name for name, entry in ZOO.items() if entry.kind == "decoder"]
# Their attention, or their positions, are computed without position_ids.
REFUSED = {"bloom", "mpt", "opt", "opt-350m", "xglm"}
HYBRIDS = ["jamba", "bamba", "falcon_h1", "recurrent_gemma", "qwen3_next", "lfm2", "gpt_oss"]
TRIANGLE = torch.ones(5, 5).tril().bool()


def difference(model: PreTrainedModel) -> float:
    """How the logits of an example differ behind another one, by a plain comparison."""
    ids = torch.arange(5, 17)[None]
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None]
    packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 7:]
    return float((packed - model(input_ids=ids[:, 7:], use_cache=False).logits).abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str) -> None:
    model = build(name)
    problem = packing_fault(model, rows=3)
    assert (problem is None) == (difference(model) < 1e-4) == (name not in REFUSED)
    if problem is not None:
        assert f"{type(model).__name__} does not keep the examples" in problem
        assert "Train without packing" in problem


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "opt", "bloom"])
def test_half_precision(name: str) -> None:
    found = packing_fault(build(name).to(torch.bfloat16))
    assert (found is None) == (name not in REFUSED)


@pytest.mark.slow
@pytest.mark.parametrize("label", HYBRIDS)
def test_recurrence_and_masks_without_positions(label: str) -> None:
    torch.manual_seed(0)
    found = packing_fault(by_label()[label].build())
    assert found is not None
    assert "does not keep the examples of a packed row apart" in found


def test_mamba() -> None:
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=99, hidden_size=16, num_hidden_layers=2, state_size=4, initializer_range=0.3
    )
    assert "MambaForCausalLM does not keep" in str(packing_fault(MambaForCausalLM(config)))


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_models_with_encoders(name: str) -> None:
    found = str(packing_fault(build(name)))
    assert type(build(name)).__name__ in found
    assert "Train without packing" in found


def test_one_output_for_each_row() -> None:
    config = GPT2Config(vocab_size=99, n_embd=16, n_layer=1, n_head=2, pad_token_id=0)
    found = str(packing_fault(GPT2ForSequenceClassification(config)))
    assert "not one for each token" in found


def test_flash_attention_takes_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
    assert "set batch_size=1" in str(packing_fault(model, rows=2))


def test_a_model_with_equal_outputs_tells_nothing() -> None:
    model = build("llama")
    nn.init.zeros_(model.get_output_embeddings().weight)
    assert packing_fault(model) is None


def test_the_model_is_left_as_it_was() -> None:
    model: Any = build("llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    packing_fault(model, rows=2)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("window", [None, 2])
def test_first_tokens_of_a_mask(window: int | None, added: bool) -> None:
    """Examples of 2 and 3 tokens, of 4 and 1."""
    examples = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]])
    mask = (examples[:, :, None] == examples[:, None]) & TRIANGLE
    if window is not None:
        mask = mask & ~torch.ones(5, 5).tril(-window).bool()
    given = torch.zeros(2, 5, 5).masked_fill(~mask, -1e9) if added else mask
    found = first_of_each(given[:, None], None, 2, 5)
    assert found is not None
    assert found.int().tolist() == [[1, 0, 1, 0, 0], [1, 0, 0, 0, 1]]


def test_positions_decide_where_a_model_attends_in_chunks() -> None:
    chunks = torch.tensor([0, 0, 1, 1, 1])
    mask = ((chunks[:, None] == chunks) & TRIANGLE)[None, None]
    found = first_of_each(mask, torch.arange(5)[None], 1, 5)
    assert found is not None
    assert found.int().tolist() == [[1, 0, 0, 0, 0]]


def test_positions_alone() -> None:
    positions = torch.tensor([[0, 1, 0, 1, 2]])
    found = first_of_each(None, positions, 1, 5)
    assert found is not None
    assert found.int().tolist() == [[1, 0, 1, 0, 0]]
    assert first_of_each(None, positions.expand(2, -1), 2, 5) is None  # flash attention does not
    assert first_of_each(torch.ones(1, 5), None, 1, 5) is None
    assert first_of_each(torch.ones(1, 1, 5, 7), None, 1, 5) is None
