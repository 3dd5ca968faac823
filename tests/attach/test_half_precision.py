"""What is trained of a half-precision model is kept in fp32, and moves."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_pelt import (
    BitFit,
    FullFineTuning,
    HeadOnly,
    LoRA,
    Plan,
    UniPELT,
    attach,
    load_adapters,
    merge,
    save_adapters,
)
from lightning_pelt.testing import awaken, is_ours, tiny_bert, tiny_gpt2, tiny_llama

TOKENS = torch.arange(3, 19).view(2, 8)
HALF = [torch.float16, torch.bfloat16]
MODELS = {"bert": tiny_bert, "gpt2": tiny_gpt2, "llama": tiny_llama}
PLANS = {
    "unipelt": UniPELT(norms=True),
    "biases": Plan.uniform(LoRA(r=2), BitFit(), norms=True),
    "head": HeadOnly(),
    "everything": FullFineTuning(),
}


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    return {name: p.dtype for name, p in model.named_parameters()}


def step(model: nn.Module, lr: float = 1e-5) -> dict[str, bool]:
    """Which trained weights one small step of Adam moves, of those that have a gradient."""
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in own.items()}
    optimizer = torch.optim.AdamW(own.values(), lr=lr, weight_decay=0.0)
    model(input_ids=TOKENS).logits.float().square().mean().backward()
    optimizer.step()
    with_gradient = {n: p for n, p in own.items() if p.grad is not None and p.grad.any()}
    return {name: not torch.equal(p, before[name]) for name, p in with_gradient.items()}


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
@pytest.mark.parametrize("name", MODELS)
def test_trained_weights_are_fp32_and_move(name: str, plan: Plan, dtype: torch.dtype) -> None:
    model = MODELS[name]().to(dtype)
    before, expected = dtypes(model), logits(model)
    attachment = attach(model, plan)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} <= {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} <= {dtype}
    if name == "gpt2" and not trained:
        return  # its vocabulary is no new head
    if plan != FullFineTuning():
        assert logits(model).dtype == dtype
    if plan != UniPELT(norms=True):  # its prefixes change the output at once
        assert (logits(model).float() - expected.float()).abs().max() < 0.05 * expected.abs().max()
    if trained:
        moved = step(model)
        assert moved
        assert all(moved.values()), [n for n, has in moved.items() if not has]
    attachment.detach()
    assert dtypes(model) == before
    assert logits(model).dtype == dtype


def test_norms_do_not_move_in_half_precision() -> None:
    """The reason for all this."""
    model = tiny_bert().bfloat16()
    norms = [n for n, _ in model.named_parameters() if n.endswith("LayerNorm.weight")]
    model.requires_grad_(False)
    for name in norms:
        model.get_parameter(name).requires_grad_(True)
    moved = step(model)
    assert len(moved) == len(norms)
    assert not any(moved.values())


def test_a_copy_computes_and_saves_the_same(tmp_path) -> None:
    model = tiny_bert().bfloat16()
    attachment = attach(model, PLANS["unipelt"])
    awaken(attachment)
    step(model, lr=1e-2)
    expected = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model))), expected)
    again = tiny_bert().bfloat16()
    load_adapters(again, save_adapters(model, tmp_path))
    assert torch.equal(logits(again), expected)
    assert model.get_parameter("classifier.weight").dtype == torch.float32


def test_other_precisions_later() -> None:
    """``*-true`` plugins convert the whole model after attaching."""
    model = tiny_bert().bfloat16()
    attach(model, PLANS["unipelt"])
    model.float()
    assert logits(model).dtype == torch.float32
    model.half()
    assert set(dtypes(model).values()) == {torch.float16}
    assert logits(model).dtype == torch.float16


def test_merging_returns_to_the_dtype_of_the_base() -> None:
    model = tiny_bert().bfloat16()
    awaken(attach(model, Plan.uniform(LoRA(r=2), norms=True)))
    expected = logits(model)
    assert set(dtypes(merge(model)).values()) == {torch.bfloat16}
    torch.testing.assert_close(logits(model), expected, rtol=0.1, atol=0.1)


def test_a_head_with_children_is_cast_at_its_border() -> None:
    class Deep(nn.Module):
        """A head that reads a weight of its child, rather than call it."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(32, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.linear(x, self.first.weight)
            assert x.dtype == torch.float32
            return self.second(x.tanh())

    model: Any = tiny_bert()
    model.classifier = Deep()
    model.half()
    attach(model, HeadOnly())
    assert logits(model).dtype == torch.float16
    assert {p.dtype for p in model.classifier.parameters()} == {torch.float32}
    assert not any(is_ours(name) for name in model.state_dict())


@pytest.mark.slow
def test_it_compiles() -> None:
    model = tiny_bert().bfloat16()
    attach(model, PLANS["unipelt"])
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(logits(compiled), logits(model))
