"""Compacter against the explicit Kronecker sum, and the paper's numbers of its start."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration
from zoo import build

from lightning_pelt import Compacter, Gate, Group, LoRA, Plan, Prefix, UniPELT, attach
from lightning_pelt.attach import Attachment
from lightning_pelt.methods._bottleneck import Dense
from lightning_pelt.methods._kronecker import Factors, Rule
from lightning_pelt.methods._stacked_bottlenecks import StackedBottlenecks, Thin
from lightning_pelt.testing import MethodConformance, awaken, tiny_bert

TOKENS = torch.arange(3, 19).view(2, 8)


class TestCompacter(MethodConformance):
    method = Compacter(n=4, bottleneck=8, rule_std=0.1)


@pytest.mark.slow  # gated bottlenecks: TestGatedAdapter
class TestGatedCompacter(MethodConformance):
    compiled = ("bert",)
    method = Compacter(n=2, bottleneck=8, rank=2, rule_std=0.1, sites="compacter++", gate=Gate())


@pytest.mark.slow  # stacked bottlenecks: TestCompacter
class TestPHMAdapter(MethodConformance):
    compiled = ("bert",)
    method = Compacter(n=4, bottleneck=8, share_rule=False, factorized=False, rule_std=0.1)


@pytest.mark.slow  # parallel placement: TestParallelAdapters
class TestParallelCompacter(MethodConformance):
    compiled = ("bert",)
    method = Compacter(n=4, bottleneck=8, rule_std=0.1, placement="parallel")


def explicit(rule: Tensor, factors: Factors, index: int) -> Tensor:
    """H as the sum of torch.kron, (d_in, d_out)."""
    rule = rule if factors.rule is None else factors.rule.A[index]
    blocks = factors.W[index] if hasattr(factors, "W") else factors.S[index] @ factors.R[index]
    return sum(torch.kron(A, block) for A, block in zip(rule, blocks, strict=True))  # type: ignore


@pytest.mark.parametrize("own", [None, {"std": 0.5, "learned": True}], ids=["shared", "own"])
@pytest.mark.parametrize("rank", [1, 2, None])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_equal_the_explicit_sum(rank: int | None, own: Any, transposed: bool) -> None:
    """Values and gradients, for k != d, to 1e-6."""
    torch.manual_seed(0)
    rule = Rule(3, std=0.5, learned=True)
    factors = Factors(4, 12, 6, n=3, rank=rank, own=own)
    weights = [*factors.parameters(), *([rule.A] if own is None else [])]
    made = factors.whole(rule.A, transposed=transposed)
    made = made.mT if transposed else made
    by_hand = torch.stack([explicit(rule.A, factors, index) for index in range(4)])
    assert made.shape == (4, 12, 6)
    torch.testing.assert_close(made, by_hand, rtol=0, atol=1e-6)
    weight = torch.randn_like(made)
    for ours, theirs in zip(
        torch.autograd.grad((made * weight).sum(), weights),
        torch.autograd.grad((by_hand * weight).sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("own", [None, {"std": 0.5, "learned": True}], ids=["shared", "own"])
@pytest.mark.parametrize("rank", [1, 2])
def test_products_in_factors_equal_the_explicit_sum(rank: int, own: Any) -> None:
    """Values and gradients, wide to narrow and narrow to wide."""
    torch.manual_seed(0)
    rule = Rule(3, std=0.5, learned=True)
    down, up = (Factors(2, *shape, n=3, rank=rank, own=own) for shape in ((12, 6), (6, 12)))
    x, z = torch.randn(2, 5, 12), torch.randn(2, 5, 6)
    F, G = down.thin_in(rule.A)
    inner = (x.view(2, 5, 3, 4) @ F[:, None]).flatten(2) @ G
    P, Q = up.thin_out(rule.A)
    outer = ((z @ P.flatten(2)).view(2, 5, 3, -1) @ Q[:, None]).flatten(2)
    H, U = (torch.stack([explicit(rule.A, f, index) for index in range(2)]) for f in (down, up))
    weights = [*down.parameters(), *up.parameters(), *([rule.A] if own is None else [])]
    for ours, theirs in ((inner, x @ H), (outer, z @ U)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    ours = torch.autograd.grad(inner.square().sum() + outer.square().sum(), weights)
    theirs = torch.autograd.grad((x @ H).square().sum() + (z @ U).square().sum(), weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_factors_and_whole_matrices_give_the_same() -> None:
    """Forced either way, where neither is a matter of course."""
    attachment = attach(tiny_bert(), Plan.uniform(Compacter(n=2, bottleneck=16, rule_std=0.3)))
    awaken(attachment)
    stack, *_ = stacked(attachment)
    f = torch.randn(2, 5, 32)
    placed: Any = attachment.submodules["compacter"][-1]
    outputs = []
    for thin in (False, True):
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(Factors, "thin", thin)
            stack.kept = None
            stack.refresh()
            assert isinstance(stack.of(0), Thin if thin else Dense)
            outputs.append(placed(f, f))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


def test_factors_are_for_wide_bottlenecks() -> None:
    def thin(d_in: int, d_out: int, n: int, rank: int | None) -> bool:
        return Factors(1, d_in, d_out, n=n, rank=rank, own=None).thin

    assert thin(768, 24, 4, 1)
    assert thin(24, 768, 4, 1)
    assert not thin(768, 24, 4, 4)
    assert not thin(768, 24, 12, 1)
    assert not thin(768, 24, 4, None)


@pytest.mark.parametrize(("n", "rank", "bound"), [(2, 1, 4), (2, 2, 8), (4, 1, 16)])
def test_the_rank_is_at_most_n_n_r(n: int, rank: int, bound: int) -> None:
    torch.manual_seed(0)
    factors = Factors(1, 64, 48, n=n, rank=rank, own=None)
    (made,) = factors.whole(Rule(n, std=1.0, learned=True).A)
    assert torch.linalg.matrix_rank(made.double(), rtol=1e-5) == bound


def test_the_start_is_the_authors(t5: PreTrainedModel) -> None:
    """Xavier with gain sqrt(2) slice by slice, a rule of 1e-4, biases of zero."""
    attachment = attach(t5, Plan.uniform(Compacter(bottleneck=24)))
    state = t5.state_dict()
    (rule,) = [tensor for name, tensor in state.items() if name.endswith("rule.A")]
    assert rule.std().item() == pytest.approx(1e-4, rel=0.2)
    for name, tensor in state.items():
        if "bias_" in name or "out_" in name:
            assert not tensor.any()
        if ".S" in name or ".R" in name:
            bound = 2**0.5 * (6 / (tensor.shape[2] + tensor.shape[3])) ** 0.5
            assert 0.97 * bound < tensor.abs().max() <= bound
            assert tensor.var().item() == pytest.approx(bound**2 / 3, rel=0.25)
    attachment.detach()


def test_adapters_start_as_the_identity(t5: PreTrainedModel) -> None:
    attachment = attach(t5, Plan.uniform(Compacter(bottleneck=24)))
    stack = stacked(attachment)[-1]
    with torch.no_grad():
        stack.refresh()
    placed: Any = attachment.submodules["compacter"][-1]
    f = torch.randn(2, 5, 768)
    with torch.no_grad():
        assert (placed(f, f) - f).norm() < 1e-6 * f.norm()
    attachment.detach()


@pytest.fixture(scope="module")
def t5() -> PreTrainedModel:
    """T5-base in width, two and two blocks."""
    return T5ForConditionalGeneration(
        T5Config(vocab_size=100, d_model=768, d_kv=64, d_ff=64, num_layers=2, num_heads=12)
    )


def stacked(attachment: Attachment) -> list[StackedBottlenecks]:
    return [m for m in attachment.submodules["compacter"] if isinstance(m, StackedBottlenecks)]


def test_a_block_by_hand() -> None:
    """The hidden state after the feed-forward of the first BERT block, from torch.kron."""
    model = tiny_bert()
    attachment = attach(model, Plan.uniform(Compacter(n=4, bottleneck=8, rule_std=0.3)))
    awaken(attachment)
    seen: dict[str, Tensor] = {}
    block = model.bert.encoder.layer[0]
    block.output.dense.register_forward_hook(lambda m, a, o: seen.update(f=o))
    block.attention.register_forward_hook(lambda m, a, o: seen.update(a=o[0]))
    block.register_forward_hook(
        lambda m, a, o: seen.update(out=o[0] if isinstance(o, tuple) else o)
    )
    with torch.no_grad():
        model(TOKENS)
        (stack,) = stacked(attachment)
        rule = stack.rule.A
        down, up = stack.down_32x8x32, stack.up_32x8x32
        f = seen["f"]  # with the adapter, since its hook is the older one
        index = [site.role for site in stack.sites].index("ffn")
        plain = block.output.dense.forward(block.intermediate(seen["a"]))
        inner = F.gelu(
            plain @ explicit(rule, down, index) + stack.bias_32x8x32[index], approximate="tanh"
        )
        by_hand = plain + inner @ explicit(rule, up, index) + stack.out_32x8x32[index]
        torch.testing.assert_close(f, by_hand, rtol=0, atol=1e-5)
        out = block.output.LayerNorm(by_hand + seen["a"])
        torch.testing.assert_close(seen["out"], out, rtol=0, atol=1e-5)


def test_one_rule_and_one_key() -> None:
    """In encoder and decoder, in every block, down and up: the same tensor."""
    model = build("t5")
    attachment = attach(model, Plan.uniform(Compacter(n=4, bottleneck=8)))
    rules = {id(stack.rule.A) for stack in stacked(attachment)}
    assert len(stacked(attachment)) == 2
    assert len(rules) == 1
    assert [name for name in model.state_dict() if "rule" in name] == ["pelt.compacter_rule.A"]
    assert sum(p.shape == (4, 4, 4) for p in model.parameters()) == 1


def test_cross_attention_gets_none() -> None:
    attachment = attach(build("t5"), Plan.uniform(Compacter(n=4, bottleneck=8)))
    roles = {site.role for stack in stacked(attachment) for site in stack.sites}
    assert roles == {"attention", "ffn"}


def test_the_gradient_of_the_rule_is_the_sum_over_modules() -> None:
    """With the same weights, one rule gets what rules per projection get together."""
    gradients = []
    for shared in (True, False):
        model = tiny_bert()
        method = Compacter(n=4, bottleneck=8, share_rule=shared, rule_std=0.3)
        attachment = attach(model, Plan.uniform(method, norms=False))
        generator = torch.Generator().manual_seed(1)
        rule = 0.3 * torch.randn(4, 4, 4, generator=generator)
        with torch.no_grad():
            for name, parameter in sorted(attachment.model.named_parameters()):
                if name.endswith(".A"):
                    parameter.copy_(rule.expand_as(parameter))
                elif "compacter" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        model(TOKENS).logits.square().sum().backward()
        found = [p.grad for n, p in model.named_parameters() if n.endswith(".A")]
        gradients.append(sum(g.reshape(-1, 4, 4, 4).sum(0) for g in found))  # type: ignore
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_made_in_fp32(dtype: torch.dtype) -> None:
    """Under autocast too: at the start they are subnormal in half precision."""
    attachment = attach(tiny_bert(), Plan.uniform(Compacter(n=4, bottleneck=8)))
    (stack,) = stacked(attachment)
    high = stack()[0]
    with torch.autocast("cpu", dtype):
        low = stack()[0]
    assert all(map(torch.equal, high, low))
    stack.to(dtype)
    assert {tensor.dtype for tensor in stack()[0]} == {torch.float32}


class TestKeptWeights:
    """Without gradients, weights are made once; every change of what they are made of is seen."""

    def prepared(self) -> tuple[PreTrainedModel, StackedBottlenecks, list[int]]:
        model = tiny_bert()
        attachment = attach(model, Plan.uniform(Compacter(n=4, bottleneck=8, rule_std=0.3)))
        awaken(attachment)
        (stack,) = stacked(attachment)
        made: list[int] = []
        stack.register_forward_hook(lambda *_: made.append(1))
        return model, stack, made

    def outputs(self, model: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            return model(TOKENS).logits

    def test_are_made_once(self) -> None:
        model, _, made = self.prepared()
        first = self.outputs(model)
        assert torch.equal(self.outputs(model), first)
        assert made == [1]

    def test_equal_those_of_training(self) -> None:
        model, _, _ = self.prepared()
        self.outputs(model)
        assert torch.equal(self.outputs(model), model(TOKENS).logits)

    def test_follow_a_step(self) -> None:
        model, _, _ = self.prepared()
        before = self.outputs(model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(TOKENS).logits.square().sum().backward()
        optimizer.step()
        after = self.outputs(model)
        assert not torch.equal(before, after)
        assert torch.equal(after, model(TOKENS).logits)

    @pytest.mark.parametrize("assign", [False, True])
    def test_follow_loading(self, assign: bool) -> None:
        model, _, _ = self.prepared()
        other, _, _ = self.prepared()
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter.mul_(1.5 if "compacter" in name else 1)
        self.outputs(model)
        model.load_state_dict(other.state_dict(), assign=assign)
        assert torch.equal(self.outputs(model), self.outputs(other))

    def test_follow_moves(self) -> None:
        model, _, made = self.prepared()
        self.outputs(model)
        model.double()
        assert self.outputs(model).dtype == torch.float64
        assert len(made) == 2

    def test_forget_on_train(self) -> None:
        model, _, made = self.prepared()
        self.outputs(model)
        model.train().eval()
        self.outputs(model)
        assert made == [1, 1]

    def test_in_inference_mode(self) -> None:
        model, _, _ = self.prepared()
        with torch.inference_mode():
            inside = model(TOKENS).logits
        assert torch.equal(inside, self.outputs(model))
        model(TOKENS).logits.sum().backward()  # nothing of inference mode is left


def test_gated_and_combined() -> None:
    model = build("t5")
    plan = UniPELT([Compacter(n=4, bottleneck=8, rule_std=0.3), LoRA(), Prefix(length=3, mlp=8)])
    attachment = attach(model, plan)
    awaken(attachment)
    assert not plan.norms
    assert {view.method for view in attachment.gates.values()} == {"compacter", "lora", "prefix"}
    assert set(attachment.parameter_groups()) == {"compacter", "lora", "prefix", "gate"}
    labels = torch.arange(3, 11).view(2, 4)
    model(input_ids=TOKENS, labels=labels).loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_groups_of_blocks_have_a_rule_each() -> None:
    method = Compacter(n=4, bottleneck=8)
    model = tiny_bert()
    attach(model, Plan([Group([method], blocks=[0]), Group([method], blocks=[1])]))
    rules = [name for name in model.state_dict() if "rule" in name]
    assert rules == ["pelt.compacter_rule_g0.A", "pelt.compacter_rule_g1.A"]


def test_a_width_is_rounded_up_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """768 // 32 = 24 holds; 30 // 2 = 15 does not fit n=4 of a width of 32."""
    with caplog.at_level(logging.WARNING):
        attachment = attach(tiny_bert(), Plan.uniform(Compacter(n=4, bottleneck=6)))
    (stack,) = stacked(attachment)
    assert {shape.width for shape in stack.shapes} == {8}
    assert "bottleneck 6 rounded up to 8, a multiple of n=4" in caplog.text


def test_n_that_does_not_divide_a_width() -> None:
    with pytest.raises(ValueError, match=r"n=6.*widths 32 of bert.*nearest n that fits is 4"):
        attach(tiny_bert(), Plan.uniform(Compacter(n=6)))


@pytest.mark.parametrize("option", ["n", "rank"])
def test_below_one(option: str) -> None:
    with pytest.raises(ValueError, match=rf"{option}=0: it must be at least 1"):
        Compacter(**{option: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("std", [0.0, -0.1])
def test_a_rule_of_zeros(std: float) -> None:
    with pytest.raises(ValueError, match=rf"rule_std={std:g}: it must be above 0"):
        Compacter(rule_std=std)


def test_unknown_sites() -> None:
    with pytest.raises(ValueError, match=r"'compacter\+': did you mean 'compacter\+\+'"):
        Compacter(sites="compacter+")


def test_a_frozen_rule_warns_and_stays_frozen() -> None:
    with pytest.warns(UserWarning, match="can hardly learn"):
        Compacter(learn_rule=False)
    model = tiny_bert()
    attachment = attach(model, Plan.uniform(Compacter(n=4, learn_rule=False, rule_std=0.3)))
    model.requires_grad_(True)
    assert not any(name.endswith(".A") for name, _ in model.named_parameters())
    assert "pelt.compacter_rule.A" in attachment.owned


def test_a_checkpoint_with_another_n() -> None:
    state = {n: t.clone() for n, t in made(Compacter(n=4, bottleneck=8)).state_dict().items()}
    with pytest.raises(
        RuntimeError, match=r"S is \(4, 4, 8, 1\) there and \(4, 2, 16, 1\) here.*n=2"
    ):
        made(Compacter(n=2, bottleneck=8)).load_state_dict(state)


def made(method: Compacter) -> PreTrainedModel:
    model = tiny_bert()
    attach(model, Plan.uniform(method))
    return model
