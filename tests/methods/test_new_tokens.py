"""Trained rows of new tokens against PEFT, and against a table that is changed by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from zoo import build

from lightning_pelt import (
    Gate,
    LoRA,
    NewTokens,
    Plan,
    attach,
    load_adapters,
    merge,
    named_groups,
    save_adapters,
)
from lightning_pelt.attach import Attachment
from lightning_pelt.methods.new_tokens import TokenRows
from lightning_pelt.testing import (
    MethodConformance,
    awaken,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
)

VOCABULARY = 100  # of the tiny models
NEW = [VOCABULARY, VOCABULARY + 2]
IDS = torch.tensor([[5, NEW[0], 7, NEW[1], NEW[0], VOCABULARY + 1]])


class TestNewTokens(MethodConformance):
    """All but the gates, which the method does not have, and blocks."""

    method = NewTokens([5, 17, 40])
    without: ClassVar[None] = None
    test_finds_sites = without  # type: ignore[assignment]
    test_closed_gates_give_the_base = without  # type: ignore[assignment]
    test_gates_get_gradients_while_closed = without  # type: ignore[assignment]
    test_merges_behind_a_constant_gate = without  # type: ignore[assignment]
    test_autocast = without  # type: ignore[assignment]
    test_merges_or_refuses = without  # type: ignore[assignment]  # no update of a layer: see below

    def attach(self, model: PreTrainedModel, *, seed: int = 0, gated: bool = False) -> Attachment:
        return super().attach(model, seed=seed)

    def inputs(self, model: PreTrainedModel) -> dict[str, Tensor]:
        batch = super().inputs(model)
        batch["input_ids"][0, :3] = torch.tensor([5, 17, 40])
        return batch


def test_autocast_reaches_the_rows() -> None:
    model = tiny_llama()
    attachment = attach(model, Plan.uniform(NewTokens([5, 7])))
    awaken(attachment)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(torch.tensor([[5, 6, 7]])).logits
    low.float().square().sum().backward()
    high = model(torch.tensor([[5, 6, 7]])).logits
    assert (low.float() - high).abs().max() < 0.1 * high.abs().max()
    assert all(p.grad.any() for p in attachment.parameters_of("new_tokens"))  # type: ignore[union-attr]


def resized(make: Callable[[], PreTrainedModel], seed: int = 0) -> PreTrainedModel:
    """A model with three new rows, which depend on ``seed``."""
    model = make()
    torch.manual_seed(seed)
    model.resize_token_embeddings(VOCABULARY + 3)
    return model


def rows(attachment: Attachment) -> dict[str, Tensor]:
    modules = attachment.submodules["new_tokens"]
    return {m.path: m.W.detach() for m in modules if isinstance(m, TokenRows)}


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "gemma2", "bart"])
def test_is_a_table_with_other_rows(name: str) -> None:
    """Tied projections get the same rows, untied ones their own; merging writes them."""
    model = build(name)
    count = model.get_input_embeddings().num_embeddings
    attachment = attach(model, Plan.uniform(NewTokens([7, 5])))
    changed = copy.deepcopy(model)
    changed.pelt_attachment.detach()  # type: ignore[operator,union-attr]
    awaken(attachment)
    found = list(rows(attachment).values())
    tables = [changed.get_input_embeddings().weight]
    if changed.get_output_embeddings().weight is not tables[0]:
        tables.append(changed.get_output_embeddings().weight)
    assert len(found) == len(tables)
    for table, new in zip(tables, found, strict=True):
        table.data[[5, 7]] = new  # in ascending order
    batch: dict[str, Tensor] = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = torch.tensor([[6, 7, 5]])
    with torch.no_grad():
        expected = changed(**batch).logits
        size = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-6 * size)
        merge(model)
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-6 * size)
    assert model.get_input_embeddings().num_embeddings == count


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_equals_peft(name: str) -> None:
    peft: Any = pytest.importorskip("peft")
    model = build(name)
    config = peft.TrainableTokensConfig(token_indices=[5, 7])
    theirs = peft.get_peft_model(copy.deepcopy(model), config).eval()
    attachment = attach(model, Plan.uniform(NewTokens([5, 7])))
    awaken(attachment)
    (W,) = rows(attachment).values()
    for key, parameter in theirs.named_parameters():
        if "trainable_tokens_delta" in key:
            parameter.data.copy_(W)
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    with torch.no_grad():
        ours, other = model(**batch).logits, theirs(**batch).logits
    torch.testing.assert_close(ours, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_bert])
def test_trains_and_saves_the_rows_only(make: Callable[[], PreTrainedModel]) -> None:
    model = resized(make)
    tables = {
        id(m.weight): m.weight
        for m in (model.get_input_embeddings(), model.get_output_embeddings())
        if m is not None
    }
    before = [table.clone() for table in tables.values()]
    attachment = attach(model, Plan.uniform(NewTokens(NEW)))
    sizes = {name: tensor.shape for name, tensor in model.state_dict().items() if "pelt" in name}
    assert {tuple(s) for s in sizes.values()} == {(2, 32), (2,)}
    optimizer = torch.optim.AdamW(named_groups(attachment, lr=0.1, weight_decay=0.5))
    start = rows(attachment)
    start = {path: W.clone() for path, W in start.items()}
    for _ in range(2):
        model(IDS).logits.square().sum().backward()
        optimizer.step()
    assert all(table.grad is None for table in tables.values())
    assert all(torch.equal(*pair) for pair in zip(tables.values(), before, strict=True))
    assert all((rows(attachment)[path] != W).any(1).all() for path, W in start.items())
    states = [state["exp_avg"].shape for p, state in optimizer.state.items() if p.shape[0] == 2]
    assert {tuple(shape) for shape in states} <= {(2, 32), (2,)}


def test_a_count_is_of_the_last_rows() -> None:
    attachment = attach(resized(tiny_llama), Plan.uniform(NewTokens(3)))
    module = attachment.submodules["new_tokens"][0]
    assert module.tokens.tolist() == [100, 101, 102]  # type: ignore[operator,union-attr]
    assert attachment.counts["new_tokens"].trained == 3 * 32 * 2


def test_file_is_loaded_into_a_base_with_other_new_rows(tmp_path: Path) -> None:
    model = resized(tiny_gpt2)
    attachment = attach(model, Plan.uniform(LoRA(r=2), NewTokens(3)))
    awaken(attachment)
    save_adapters(model, tmp_path)
    other = resized(tiny_gpt2, seed=1)
    assert not torch.equal(other.transformer.wte.weight, model.transformer.wte.weight)
    load_adapters(other, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(other(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokens", [3, NEW])
def test_a_base_with_the_old_vocabulary_is_refused(tmp_path: Path, tokens: Any) -> None:
    model = resized(tiny_gpt2)
    attach(model, Plan.uniform(NewTokens(tokens)))
    save_adapters(model, tmp_path)
    state = model.state_dict()
    with pytest.raises((ValueError, RuntimeError), match=r"resize_token_embeddings\(len\(tokeniz"):
        load_adapters(tiny_gpt2(), tmp_path)
    if tokens == 3:
        other = tiny_gpt2()
        attach(other, Plan.uniform(NewTokens(3)))
        with pytest.raises(RuntimeError, match=r"100, 101, 102 there, and of 97, 98, 99 here"):
            other.load_state_dict(state)


def test_acts_beside_lora_of_the_embedding_in_either_order() -> None:
    """The rows come first, and the update is added to them: merged and unmerged."""
    for methods in (
        (LoRA(sites=["embedding"]), NewTokens(NEW)),
        (NewTokens(NEW), LoRA(sites=["embedding"])),
    ):
        model = resized(tiny_llama)
        attachment = attach(model, Plan.uniform(*methods))
        awaken(attachment)
        with torch.no_grad():
            before = model(IDS).logits
            torch.testing.assert_close(merge(model)(IDS).logits, before, rtol=0, atol=1e-5)


def test_resized_rows_need_not_be_saved_with_the_table(tmp_path: Path) -> None:
    """A checkpoint holds no table where the rows of all new tokens are trained."""
    tiny_llama().save_pretrained(tmp_path)
    model = type(tiny_llama()).from_pretrained(tmp_path)
    model.resize_token_embeddings(VOCABULARY + 3)
    with pytest.warns(
        UserWarning, match=r"3 rows of new tokens.*train its new rows with NewTokens"
    ):
        attachment = attach(model, Plan.uniform(LoRA()))
    assert "model.embed_tokens.weight" in attachment.owned
    attachment.detach()
    attachment = attach(model, Plan.uniform(LoRA(), NewTokens(3)))
    assert "model.embed_tokens.weight" not in attachment.owned


@pytest.mark.parametrize("tokens", [0, -1, [], [-1], [5, 5]])
def test_bad_tokens_are_refused(tokens: Any) -> None:
    with pytest.raises(ValueError, match="expected different ids of at least 0"):
        NewTokens(tokens)


def test_gates_and_models_without_words_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be gated"):
        NewTokens(gate=Gate())
    with pytest.raises(ValueError, match="vit has no table of word embeddings"):
        attach(build("vit"), Plan.uniform(NewTokens()))
