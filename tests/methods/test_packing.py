"""Packed rows against the same examples one by one: logits, loss, and all gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from datasets import Dataset
from packed import by_example
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask
from zoo import FIRST_WORD, LAST_WORD, ZOO, build

from lightning_pelt import (
    IA3,
    XPEFT,
    Adapter,
    BitFit,
    Compacter,
    Gate,
    LoRA,
    LowRankAdapter,
    Plan,
    Prefix,
    RandomBank,
    UniPELT,
    attach,
)
from lightning_pelt.attach import Attachment
from lightning_pelt.attach.packing import packing_fault
from lightning_pelt.data.packing import CollatePacked, pack
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.padding import Padding
from lightning_pelt.tasks import CausalLM
from lightning_pelt.testing import awaken

SIZES = [4, 6, 3, 5, 2, 3]  # two full rows of ten tokens, and one of three with padding
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
REFUSED = {"bloom", "mpt", "opt", "opt-350m", "xglm"}
DECODERS = [n for n, e in ZOO.items() if e.kind == "decoder" and n not in REFUSED]
POOLS = ["token", "masked", "all"]


def examples(seed: int = 0) -> list[dict[str, list[int]]]:
    draw = torch.Generator().manual_seed(seed)
    made = []
    for size in SIZES:
        ids = torch.randint(FIRST_WORD, LAST_WORD, (size,), generator=draw).tolist()
        answer = [-100] * (size // 2) + ids[size // 2 :]
        made.append({"input_ids": ids, "labels": answer})
    return made


def packed_batch(length: int = 10) -> dict[str, Tensor]:
    return CollatePacked()(pack(Dataset.from_list(examples()), length).remove_columns("length")[:])


def one_by_one(model: PreTrainedModel) -> tuple[dict[tuple[int, ...], Tensor], Tensor]:
    """The logits of every example by its tokens, and the mean loss over all trained tokens."""
    logits, losses, tokens = {}, [], 0
    for example in examples():
        ids, labels = torch.tensor([example["input_ids"]]), torch.tensor(example["labels"])[1:]
        out = model(input_ids=ids, use_cache=False).logits[0]
        logits[tuple(example["input_ids"])] = out
        losses.append(torch.nn.functional.cross_entropy(out[:-1].float(), labels, reduction="sum"))
        tokens += int((labels != -100).sum())
    return logits, torch.stack(losses).sum() / tokens


def gradients(attachment: Attachment, loss: Tensor) -> dict[str, Tensor]:
    attachment.model.zero_grad()
    loss.backward()
    trained = {n: p for n, p in attachment.model.named_parameters() if p.requires_grad}
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in trained.items()}


def assert_equal_to_one_by_one(attachment: Attachment, run: Any = None) -> None:
    model, batch = attachment.model, packed_batch()
    assert batch["input_ids"].shape == (3, 10)
    assert (batch["labels"][-1, 3:] == -100).all(), "the last row should have padding"
    loss, outputs = CausalLM().step(model if run is None else run, batch)
    ours = {name: gradient.clone() for name, gradient in gradients(attachment, loss).items()}
    alone, expected = one_by_one(model)
    assert not outputs.logits.isnan().any()
    for ids, found in by_example(batch, outputs.logits):
        torch.testing.assert_close(found, alone.pop(ids), **CLOSE)
    assert not alone
    torch.testing.assert_close(loss, expected, **CLOSE)
    theirs = gradients(attachment, expected)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], **CLOSE)
    assert any(gradient.abs().max() > 1e-3 for gradient in ours.values())


def everything(name: str, pool: Any, implementation: str | None = None) -> Attachment:
    methods: list[Any] = [LoRA(r=2), Adapter(reduction_factor=4), IA3()]
    if ZOO[name].interface is not False:
        methods.append(Prefix(length=3, mlp=8))
    model = build(name)
    if implementation is not None:
        model.set_attn_implementation(implementation)
    attachment = attach(model, UniPELT(methods, gate=Gate(pool=pool)))
    awaken(attachment)
    return attachment


@pytest.mark.parametrize("pool", POOLS)
def test_logits_loss_and_gradients(pool: str) -> None:
    assert_equal_to_one_by_one(everything("llama", pool))


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_implementations(implementation: str, pool: str) -> None:
    with torch.compiler.set_stance("force_eager"):
        attachment = everything("llama", pool, implementation)
        batch = packed_batch()
        loss, outputs = CausalLM().step(attachment.model, batch)
        attachment.model.set_attn_implementation("sdpa")
        expected, _ = one_by_one(attachment.model)
    for ids, found in by_example(batch, outputs.logits):
        torch.testing.assert_close(found, expected[ids], **CLOSE)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("pool", POOLS)
def test_families(pool: str, name: str) -> None:
    assert_equal_to_one_by_one(everything(name, pool))


@pytest.mark.parametrize("gate", [None, Gate(pool="masked")], ids=["ungated", "gated"])
@pytest.mark.parametrize(
    "method",
    [
        Adapter(reduction_factor=4),
        BitFit(),
        Compacter(n=4),
        IA3(),
        LoRA(r=2),
        LowRankAdapter(),
        Prefix(length=2, mlp=None),
        XPEFT(bank=RandomBank(size=8), k=2, bottleneck=4),
    ],
    ids=lambda method: method.name,
)
def test_methods(method: Method, gate: Gate | None) -> None:
    attachment = attach(build("llama"), Plan.uniform(dataclasses.replace(method, gate=gate)))
    awaken(attachment)
    assert_equal_to_one_by_one(attachment)


def test_a_gate_has_the_value_of_each_example() -> None:
    attachment = everything("llama", "masked")
    model, batch = attachment.model, packed_batch()
    gate = attachment.gates["01/lora.query"]
    model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    packed = gate.value
    assert packed is not None
    values = set()
    for ids, found in by_example(batch, packed):
        model(input_ids=torch.tensor([ids]), use_cache=False)
        assert gate.value is not None
        torch.testing.assert_close(found, gate.value.expand(len(ids)), rtol=0, atol=1e-6)
        values.add(round(float(found[0]), 5))
    assert len(values) == len(SIZES)


def test_pooling_over_the_row_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative control: as it would be without the examples."""
    monkeypatch.setattr(Padding, "examples", lambda self, tokens: None)
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_equal_to_one_by_one(everything("llama", "masked"))


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_of_one_example_pool_as_before(side: str) -> None:
    attachment = everything("llama", "masked")
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    if side == "left":
        ids, mask = ids.flip(1), mask.flip(1)
    attachment.model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert all(gate.value.shape == (2,) for gate in attachment.gates.values())  # type: ignore[union-attr]


@pytest.mark.parametrize("pool", ["masked", "token"])
def test_activation_checkpointing_of_several_batches(pool: str) -> None:
    """Both forwards run before both backwards, so that nothing of the first may be overwritten."""
    batches = [packed_batch(), {n: t.flip(0) for n, t in packed_batch(12).items()}]
    assert batches[0]["input_ids"].shape != batches[1]["input_ids"].shape
    found = []
    for checkpoint in (False, True):
        attachment = everything("llama", pool)
        attachment.train()
        if checkpoint:
            attachment.model.gradient_checkpointing_enable()
        losses = [CausalLM().step(attachment.model, batch)[0] for batch in batches]
        found.append(gradients(attachment, losses[0] + losses[1]))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["masked", pytest.param("token", marks=pytest.mark.nightly)])
def test_compiled(pool: str) -> None:
    attachment = everything("llama", pool)
    compiled = torch.compile(attachment.model, backend="aot_eager", fullgraph=True)
    assert_equal_to_one_by_one(attachment, compiled)


def _by_positions(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kw: Any
) -> Any:
    """Attention as flash attention computes it: a row with positions that start again is packed.

    Otherwise the last query sees all keys.
    """
    assert mask is None
    starts = kw["position_ids"][0].diff() != 1
    visible = torch.ones(query.shape[2], key.shape[2]).tril(key.shape[2] - query.shape[2]).bool()
    if starts.any():
        example = torch.nn.functional.pad(starts.cumsum(0), (1, 0))
        visible = visible & (example[:, None] == example)
    return sdpa_attention_forward(module, query, key, value, visible[None, None], **kw)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an attention implementation that finds examples as flash attention does."""
    name = "flash_by_positions"
    monkeypatch.setitem(AttentionInterface._global_mapping, name, _by_positions)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, name, flash_attention_mask)
    return name


@pytest.mark.parametrize("pool", POOLS)
def test_positions_without_a_mask_as_in_flash_attention(pool: Any, flash: str) -> None:
    model = build("llama")
    attachment = attach(model, UniPELT([LoRA(r=2), Adapter()], gate=Gate(pool=pool)))
    awaken(attachment)
    expected, _ = one_by_one(model)
    batch = {name: rows[:1] for name, rows in packed_batch().items()}
    model.config._attn_implementation = flash
    assert packing_fault(attachment, rows=1) is None
    assert "set batch_size=1" in str(packing_fault(attachment, rows=2))
    _, outputs = CausalLM().step(model, batch)
    found = dict(by_example(batch, outputs.logits))
    assert len(found) > 1
    for ids, logits in found.items():
        torch.testing.assert_close(logits, expected[ids], **CLOSE)


def test_a_prefix_in_flash_attention_is_refused(flash: str) -> None:
    """Its kernels find the keys of an example by their numbers, which a prefix shifts."""
    attachment = attach(build("llama"), Plan.uniform(Prefix(length=2)))
    attachment.model.config._attn_implementation = flash
    found = str(packing_fault(attachment, rows=1))
    assert "a prefix cannot be used with position_ids" in found
    assert "set attn_implementation='sdpa'" in found


def test_half_precision_is_finite() -> None:
    attachment = everything("llama", "masked")
    attachment.model.to(torch.bfloat16)
    loss, outputs = CausalLM().step(attachment.model, packed_batch())
    assert torch.isfinite(loss)
    assert torch.isfinite(outputs.logits).all()
    assert all(g.isfinite().all() for g in gradients(attachment, loss).values())
