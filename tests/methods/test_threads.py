"""One model, several threads: whatever one does in the middle of another's forward."""

from __future__ import annotations

import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from zoo import build

from lightning_pelt import (
    XPEFT,
    Adapter,
    Compacter,
    Gate,
    LoRA,
    Plan,
    Prefix,
    Prompt,
    RandomBank,
    UniPELT,
    attach,
    profiles_of,
)
from lightning_pelt.methods.current import Current
from lightning_pelt.testing import awaken, tiny_bert

PLANS = {
    "unipelt": UniPELT(),
    "gated, with one MLP for all prefixes": UniPELT([Prefix(mlp=8), LoRA()], gate=Gate(pool="all")),
    "parallel": Plan.uniform(Adapter(placement="parallel", sites=["attention", "ffn"])),
    "compacter": Plan.uniform(Compacter(bottleneck=4), norms=False),
    "prompt": Plan.uniform(Prompt(length=3, gate=Gate())),
    "profiles": Plan.uniform(
        XPEFT(bank=RandomBank(size=6), k=2, bottleneck=4, profiles=3, head="profile", gate=Gate())
    ),
}


def batch(rows: int, tokens: int, seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[-1, tokens // 2 :] = 0
    ids = torch.randint(3, 90, (rows, tokens), generator=draw)
    return {"input_ids": ids * mask, "attention_mask": mask}


MINE, OTHER = batch(2, 8, 1), batch(3, 6, 2)


def with_profiles(plan: str, inputs: dict[str, Tensor], first: int) -> dict[str, Tensor]:
    rows = torch.arange(first, first + len(inputs["input_ids"])) % 3
    return {**inputs, "profile": rows} if plan == "profiles" else inputs


def in_a_thread(run: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()  # raises what it has raised


@contextmanager
def interrupted(model: nn.Module, run: Callable[[], Any]) -> Iterator[list[Any]]:
    """Before every call of a module on this thread, another thread calls ``run``."""
    mine, found = threading.current_thread(), []

    def interrupt(*_: Any) -> None:
        if threading.current_thread() is mine:
            found.append(in_a_thread(run))

    handles = [module.register_forward_pre_hook(interrupt) for module in model.modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def attached(plan: str, model: PreTrainedModel | None = None) -> PreTrainedModel:
    model = tiny_bert() if model is None else model
    awaken(attach(model, PLANS[plan]), std=0.3)
    return model


@torch.no_grad()
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.slow
def test_a_forward_in_the_middle_of_another(plan: str) -> None:
    model = attached(plan)
    mine, other = with_profiles(plan, MINE, 0), with_profiles(plan, OTHER, 1)
    expected, expected_other = model(**mine).logits, model(**other).logits
    with interrupted(model, lambda: model(**other).logits) as found:
        logits = model(**mine).logits
    assert torch.equal(logits, expected)
    assert len(found) > 20
    assert all(torch.equal(each, expected_other) for each in found)


@torch.no_grad()
@pytest.mark.slow
def test_the_base_alone() -> None:
    model: Any = attached("unipelt")
    expected = model.bert(**MINE).last_hidden_state
    with interrupted(model, lambda: model.bert(**OTHER)):
        assert torch.equal(model.bert(**MINE).last_hidden_state, expected)


def gradients(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    model.zero_grad()
    model(**inputs).logits.square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["unipelt", "compacter", "profiles"])
def test_a_forward_in_the_middle_of_a_recomputation(plan: str) -> None:
    """Activation checkpointing calls the blocks again in the backward pass."""
    model = attached(plan).train()
    mine, other = with_profiles(plan, MINE, 0), with_profiles(plan, OTHER, 1)
    expected = gradients(model, mine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward() -> Tensor:
        with torch.no_grad():
            return model(**other).logits

    with interrupted(model, forward):
        found = gradients(model, mine)
    for one, another in zip(found, expected, strict=True):
        torch.testing.assert_close(one, another, rtol=1e-5, atol=1e-6)


def loss(model: PreTrainedModel, profile: int) -> Tensor:
    return model(**MINE, profile=torch.tensor([profile, 2])).logits.square().sum()


def test_two_forwards_before_a_recomputation() -> None:
    """A repeated block would read the profiles of the second in the graph of the first."""
    model = attached("profiles").train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": False})
    first = loss(model, 0)
    first.backward()
    loss(model, 1).backward()  # the first is referred to, but has had its backward pass
    same = loss(model, 0) + loss(model, 0)
    same.backward()
    with pytest.raises(RuntimeError, match=r"2 forwards with different profiles wait"):
        (loss(model, 0) + loss(model, 1)).backward()


@pytest.mark.slow
def test_profiles_of_a_thread() -> None:
    """What one thread selects, another does not see."""
    model = attached("profiles")

    def run(rows: list[int]) -> Tensor:
        with torch.no_grad(), profiles_of(model, rows):
            return model(**MINE).logits

    expected = run([0, 2])
    with torch.no_grad(), profiles_of(model, [0, 2]):
        with interrupted(model, lambda: run([1, 1])):
            assert torch.equal(model(**MINE).logits, expected)
        with pytest.raises(ValueError, match="does not name the profile"):
            in_a_thread(lambda: model(**MINE))


@torch.no_grad()
def test_the_base_does_not_use_the_profiles_of_the_last_batch() -> None:
    model: Any = attached("profiles")
    model(**with_profiles("profiles", MINE, 0))
    with pytest.raises(ValueError, match="does not name the profile"):
        model.bert(**MINE)


@torch.no_grad()
def test_an_exception_leaves_other_threads_alone() -> None:
    model = attached("unipelt")
    expected = model(**MINE).logits
    with pytest.raises(IndexError):
        model(input_ids=torch.full((2, 8), 1000))
    assert torch.equal(in_a_thread(lambda: model(**MINE).logits), expected)
    assert torch.equal(model(**MINE).logits, expected)


@pytest.mark.slow
@torch.no_grad()
def test_generation_in_threads() -> None:
    model: Any = attached("unipelt", build("t5"))
    options = {"max_new_tokens": 2, "do_sample": False}
    expected = model.generate(**MINE, **options)
    with interrupted(model.encoder.block[0], lambda: model.generate(**OTHER, **options)):
        assert torch.equal(model.generate(**MINE, **options), expected)


def test_a_part_of_the_model_says_what_it_misses() -> None:
    model: Any = attached("gated, with one MLP for all prefixes")
    states = torch.randn(2, 8, 32)
    with pytest.raises(RuntimeError, match=r"prefix MLP of .* is missing.*Call the model"):
        in_a_thread(lambda: model.bert.encoder.layer[0](states))


class TestCurrent:
    def test_is_separate_for_every_thread(self) -> None:
        current: Current[int] = Current("a number")
        current.set(1)
        in_a_thread(lambda: current.set(2))
        assert current.get() == 1
        assert in_a_thread(current.peek) is None

    def test_take_forgets(self) -> None:
        current: Current[int] = Current("a number", shared=True)
        current.set(1)
        assert current.take() == 1
        with pytest.raises(RuntimeError, match="a number is missing"):
            current.get()

    def test_copies_are_empty(self) -> None:
        current: Current[Any] = Current("a number", shared=True)
        current.set(lambda: None)  # pickle could not find it
        copied = pickle.loads(pickle.dumps(current))
        assert (copied.what, copied.shared, copied.peek()) == ("a number", True, None)

    def test_a_thread_of_autograd_reads_what_was_set_before_the_first_block(self) -> None:
        """As on a GPU, where backward passes run on threads of autograd."""
        current: Current[int] = Current("a number", shared=True)
        inside: Current[int] = Current("a number of a block")
        current.set(1)
        inside.set(1)
        seen: list[Any] = []

        class Reads(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                seen.append((current.peek(), inside.peek()))
                return gradient

        x = torch.ones(1, requires_grad=True)
        y = Reads.apply(x)
        in_a_thread(lambda: y.backward())
        assert seen == [(1, None)]
