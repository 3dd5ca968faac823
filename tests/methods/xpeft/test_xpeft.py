"""X-PEFT against explicit loops over the bank, masks against the formula, and single rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lightning_pelt import XPEFT, Gate, LoRA, Plan, RandomBank, UniPELT, attach
from lightning_pelt.methods.xpeft.aggregation import AggregatedAdapter
from lightning_pelt.methods.xpeft.masks import Masks, masks_of, profiles_of, top_k
from lightning_pelt.profiles.model_profiles import heads_of
from lightning_pelt.testing import MethodConformance, awaken, tiny_bert, tiny_gpt2

TOKENS = torch.arange(3, 27).view(3, 8)
BANK = RandomBank(seed=1, size=12)


class TestXPEFT(MethodConformance):
    """The scale makes the effect of the small random adapters visible."""

    method = XPEFT(bank=BANK, k=4, scale=4.0, bottleneck=8)


@pytest.mark.slow  # masks: TestXPEFT
class TestSoftXPEFT(MethodConformance):
    compiled = ("bert",)
    method = XPEFT(bank=BANK, mask="soft", scale=40.0, bottleneck=8, gate=Gate())


@pytest.mark.slow  # parallel placement: TestParallelAdapters
class TestParallelXPEFT(MethodConformance):
    compiled = ("bert",)
    method = XPEFT(bank=BANK, k=4, scale=8.0, bottleneck=8, placement="parallel", norm=None)


def attached(**options: Any) -> tuple[PreTrainedModel, Masks]:
    model = tiny_bert()
    method = XPEFT(**{"bank": BANK, "k": 4, "scale": 8.0, "bottleneck": 8, **options})
    awaken(attach(model, Plan.uniform(method)))
    return model, masks_of(model)


def run(model: PreTrainedModel, tokens: Tensor = TOKENS, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens, **inputs).logits


def nets(model: PreTrainedModel) -> list[AggregatedAdapter]:
    return [module for module in model.modules() if isinstance(module, AggregatedAdapter)]


def test_hard_masks_by_hand() -> None:
    masks = Masks(
        profiles=1,
        sites=1,
        size=4,
        k=2,
        scale=3.0,
        temperature=0.5,
        noise=0.0,
        init_std=0.0,
        bottleneck=2,
        norm=None,
    )
    logits = torch.tensor([0.3, -1.0, 0.3, 2.0], requires_grad=True)
    value = masks.from_logits(logits)
    assert torch.allclose(value, 3 * torch.tensor([1.0, 0, 0, 1]))  # of the tie, the lower index
    weight = torch.tensor([1.0, 2, 3, 4])
    (gradient,) = torch.autograd.grad((value * weight).sum(), logits)
    again = logits.detach().requires_grad_()
    soft = 3 * 2 * torch.softmax(again / 0.5, -1)
    (expected,) = torch.autograd.grad((soft * weight).sum(), again)
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().min() > 0  # also for logits that were not selected


def test_soft_masks_by_hand() -> None:
    masks = Masks(
        profiles=1,
        sites=1,
        size=3,
        k=None,
        scale=2.0,
        temperature=4.0,
        noise=0.0,
        init_std=0.0,
        bottleneck=2,
        norm=None,
    )
    logits = torch.tensor([0.0, 4.0, 8.0])
    exp = torch.tensor([1.0, 2.718281828, 7.389056])
    torch.testing.assert_close(masks.from_logits(logits), 2 * exp / exp.sum())


def test_ties_go_to_the_lower_index() -> None:
    assert top_k(torch.zeros(100), 3).nonzero().flatten().tolist() == [0, 1, 2]


def test_aggregation_equals_an_explicit_loop() -> None:
    model, masks = attached(profiles=3)
    for index, net in enumerate(nets(model)):
        selected = masks.select(torch.tensor([2, 0]))
        adapters = net.aggregate(selected)
        tensors = BANK.load(blocks=2, width=32, bottleneck=8)
        for row, profile in enumerate((0, 2)):
            a, b = masks.from_logits(masks.logits[profile])[index]
            A = sum(a[i] * tensors.A[index, i].view(32, 8) for i in range(12))
            B = sum(b[i] * tensors.B[index, i].view(8, 32) for i in range(12))
            torch.testing.assert_close(adapters.A[row], A, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(adapters.B[row, :8], B, rtol=1e-5, atol=1e-6)
            assert not adapters.B[row, 8].any()
        assert adapters.inverse.tolist() == [1, 0]


def test_one_hot_masks_are_one_adapter() -> None:
    """Both sides choose adapter 5 of the bank: relu(x A_5) B_5 and nothing else."""
    model, masks = attached(k=1, scale=1.0, norm=None)
    with torch.no_grad():
        for logits in masks.logits:
            logits.zero_()[..., 5] = 1
        masks.selected.set(masks.select(None))
        tensors = BANK.load(blocks=2, width=32, bottleneck=8)
        f = torch.randn(2, 5, 32)
        for index, net in enumerate(nets(model)):
            A, B = tensors.A[index, 5].view(32, 8), tensors.B[index, 5].view(8, 32)
            torch.testing.assert_close(net(f, f), f + F.relu(f @ A) @ B, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", [None, "shared", "profile"])
def test_rows_of_one_batch_equal_single_rows(norm: str | None) -> None:
    model, _ = attached(profiles=3, norm=norm)
    rows = torch.tensor([2, 0, 2])
    together = run(model, profile=rows)
    single = [run(model, TOKENS[i : i + 1], profile=rows[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(single), rtol=0, atol=1e-5)
    assert not torch.allclose(together[0], run(model, profile=torch.tensor([0, 0, 2]))[0])


@pytest.mark.parametrize("norm", ["shared", "profile"])
def test_absent_profiles_are_not_updated(norm: str) -> None:
    """Not even by the momentum of earlier steps."""
    model, masks = attached(profiles=3, norm=norm)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def step(rows: list[int]) -> None:
        optimizer.zero_grad()
        model(input_ids=TOKENS, profile=torch.tensor(rows)).logits.square().sum().backward()
        optimizer.step()

    step([0, 1, 2])
    before = [logits.detach().clone() for logits in masks.logits]
    step([2, 2, 0])
    moved = [not torch.equal(a, b) for a, b in zip(before, masks.logits, strict=True)]
    assert moved == [True, False, True]
    if norm == "profile":
        assert masks.norms[1].grad is None


def test_own_heads_by_hand() -> None:
    """The heads add to the shared one, row by row, and start at zero."""
    model = tiny_bert()
    method = XPEFT(bank=BANK, k=4, scale=8.0, bottleneck=8, profiles=3, head="profile")
    attachment = attach(model, Plan.uniform(method))
    shared = run(model, profile=torch.tensor([2, 0, 2]))
    heads = heads_of(model)
    assert heads is not None
    seen: dict[str, Tensor] = {}
    model.classifier.register_forward_pre_hook(lambda m, a: seen.update(x=a[0]))
    with torch.no_grad():
        for head in heads.own:
            head.normal_()
    found = run(model, profile=torch.tensor([2, 0, 2]))
    for row, profile in enumerate((2, 0, 2)):
        head = heads.own[profile]
        by_hand = shared[row] + head[:, :-1] @ seen["x"][row] + head[:, -1]
        torch.testing.assert_close(found[row], by_hand, rtol=1e-5, atol=1e-5)
    assert attachment.counts["xpeft"].trained == 3 * (2 * 2 * 12 + 3 * 33) + 2 * 2 * 8


def test_noise_applies_in_train_mode_only() -> None:
    model, _ = attached(noise=1.0)
    assert torch.equal(run(model), run(model))
    model.train()
    assert not torch.equal(run(model), run(model))


def test_neither_checkpoints_nor_buffers_contain_the_bank() -> None:
    model, _ = attached()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 2 * 2 * 12 + 2 * 2 * 8 + 3 * 32 + 3  # masks, norms, head
    assert not any(buffer.numel() > 64 for name, buffer in model.named_buffers() if "pelt" in name)
    assert {tuple(t.shape) for n, t in model.state_dict().items() if "xpeft" in n} == {
        (2, 2, 12),
        (2, 2, 8),
    }
    model.double()
    assert all(net.A.dtype == torch.float32 for net in nets(model))  # the bank keeps its dtype


def test_a_bank_in_bfloat16_is_close() -> None:
    high, low = attached()[0], attached(precision="bfloat16")[0]
    assert {net.A.dtype for net in nets(low)} == {torch.bfloat16}
    torch.testing.assert_close(run(low), run(high), rtol=0.05, atol=0.05)


def test_xpeft_with_another_method_in_a_plan() -> None:
    model = tiny_bert()
    plan = UniPELT([XPEFT(bank=BANK, k=4, bottleneck=8, scale=8.0, profiles=2), LoRA()])
    attachment = attach(model, plan)
    awaken(attachment)
    model(input_ids=TOKENS, profile=torch.tensor([0, 1, 1])).logits.square().sum().backward()
    assert {gate.method for gate in attachment.gates.values()} == {"xpeft", "lora"}
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_generation_uses_the_profile_of_each_row() -> None:
    model = tiny_gpt2()
    method = XPEFT(bank=BANK, k=4, scale=60.0, bottleneck=8, profiles=2)
    awaken(attach(model, Plan.uniform(method)))
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with profiles_of(model, [0, 1, 0]):
        together = model.generate(TOKENS, num_beams=2, **options)
    with profiles_of(model, [1]):
        alone = model.generate(TOKENS[1:2], num_beams=2, **options)
    assert torch.equal(together[1:2], alone)


def test_a_batch_without_the_profiles_of_its_rows_raises() -> None:
    model, _ = attached(profiles=2)
    with pytest.raises(ValueError, match=r"2 profiles and the batch does not name.*profile=\(B,\)"):
        run(model)
    with pytest.raises(ValueError, match=r"profile number 2, and the plan has 2 profiles"):
        run(model, profile=torch.tensor([0, 1, 2]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0, expected 1 to 12"),
        ({"k": 13}, "k=13"),
        ({"mask": "hrad"}, "did you mean 'hard'"),
        ({"norm": "share"}, "did you mean 'shared'"),
        ({"profiles": 0}, "profiles=0"),
        ({"temperature": 0}, "temperature=0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XPEFT(**{"bank": BANK, "k": 4, **options})
