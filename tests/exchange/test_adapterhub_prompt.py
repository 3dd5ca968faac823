"""``HubPrompt`` is a method like any other."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from lightning_pelt import Gate, Plan, attach
from lightning_pelt.exchange.adapterhub import HubPrompt
from lightning_pelt.testing import MethodConformance, tiny_bert, tiny_gpt2


class TestHubPrompt(MethodConformance):
    method = HubPrompt(length=3)

    # It has no gate.
    test_closed_gates_give_the_base = None
    test_gates_get_gradients_while_closed = None
    test_merges_behind_a_constant_gate = None
    test_autocast = None

    def models(self):
        return {"bert": tiny_bert}

    def test_finds_sites(self, model: PreTrainedModel) -> None:
        """One place, in front of all blocks."""
        assert len(self.method.where(self.attach(model).anatomy)) == 1


def test_under_autocast_it_keeps_the_dtype_of_the_base() -> None:
    model, words = tiny_bert().eval(), torch.tensor([[5, 6, 7]])
    with torch.autocast("cpu", torch.bfloat16):
        wanted = model(words).logits.dtype
    attach(model, Plan.uniform(HubPrompt(length=2)))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(words).logits
    logits.sum().backward()
    assert logits.dtype == wanted
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("first", [0, 1])
def test_the_prompt_stands_in_front_of_the_embeddings(first: int) -> None:
    model = tiny_bert().eval()
    words = torch.tensor([[5, 6, 7]])
    embedded = model.bert.embeddings(words)
    method = HubPrompt(length=2, behind_first=bool(first))
    (module,) = attach(model, Plan.uniform(method)).submodules["hub_prompt"]
    found = model.bert.embeddings(words)
    assert torch.equal(found[0, first : first + 2], module.P)
    assert torch.equal(torch.cat([found[:, :first], found[:, first + 2 :]], 1), embedded)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="length=0"):
        HubPrompt(length=0)
    with pytest.raises(ValueError, match="no gate"):
        HubPrompt(gate=Gate())
    with pytest.raises(ValueError, match="has a decoder"):
        attach(tiny_gpt2(), Plan.uniform(HubPrompt()))
    with pytest.raises(ValueError, match="no module 'nowhere'"):
        attach(tiny_bert(), Plan.uniform(HubPrompt(embeddings="nowhere")))
