"""LoRA of fused experts: an update of each slice of their stacked weights."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from zoo import ZOO, build, inputs, output, without_values

from lightning_pelt import (
    IA3,
    Adapter,
    Adapters,
    BitFit,
    Gate,
    LoRA,
    Plan,
    attach,
    detach,
    load_adapters,
    merge,
    save_adapters,
)
from lightning_pelt.anatomy import examine
from lightning_pelt.exchange.peft import save_peft
from lightning_pelt.testing import awaken, tiny_llama

EXPERTS = ("expert.in", "expert.out")
PLAN = Plan.uniform(LoRA(r=3, sites=EXPERTS))
MIXTURES = ("mixtral", "qwen3_moe", "deepseek_v3")
IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")


def attached(name: str = "mixtral", plan: Plan = PLAN) -> PreTrainedModel:
    """A model whose updates differ from zero."""
    model = build(name)
    awaken(attach(model, plan), std=0.2)
    return model


def with_changed_weights(model: PreTrainedModel) -> PreTrainedModel:
    """The bare model, with W + s B A as its weights."""
    updates = model.pelt_attachment.submodules["lora"]
    found = {u.path: (u.scale, dict(u.named_parameters())) for u in copy.deepcopy(updates)}
    detach(model)
    with torch.no_grad():
        for path, (scale, own) in found.items():
            host = model.get_submodule(path)
            for role, name in (("in", "gate_up_proj"), ("out", "down_proj")):
                for expert in range(len(own[f"A_{role}"])):
                    delta = own[f"B_{role}"][expert] @ own[f"A_{role}"][expert]
                    getattr(host, name)[expert] += scale * delta
    return model


@pytest.mark.parametrize("name", MIXTURES)
def test_sites(name: str) -> None:
    model = build(name)
    config = model.config
    width = getattr(config, "moe_intermediate_size", config.intermediate_size)
    sites = [site for site in examine(model).sites if site.experts]
    assert {(s.role, s.d_in, s.d_out, s.experts) for s in sites} == {
        ("expert.in", config.hidden_size, 2 * width, 4),
        ("expert.out", width, config.hidden_size, 4),
    }
    assert all(site.path.endswith(".mlp.experts") for site in sites)
    assert not any(site.is_linear for site in sites)


def test_globs_over_all_layers_leave_experts_out() -> None:
    anatomy = examine(build("mixtral"))
    assert not any(site.experts for site in anatomy.select(["*", "*output"]))
    assert {site.role for site in anatomy.select("expert.*")} == {*EXPERTS}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", MIXTURES)
def test_a_new_update_changes_nothing(name: str, implementation: str) -> None:
    model, given = build(name), inputs(name)
    model.set_experts_implementation(implementation)
    with torch.no_grad():
        before = output(model, given)
        attach(model, PLAN)
        torch.testing.assert_close(output(model, given), before, atol=1e-5, rtol=1e-5)
        detach(model)
        assert torch.equal(output(model, given), before)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", MIXTURES)
def test_it_equals_changed_weights(name: str, implementation: str) -> None:
    model, given = attached(name), inputs(name)
    model.set_experts_implementation(implementation)
    with torch.no_grad():
        bare = output(build(name), given)
        found = output(model, given)
        expected = output(with_changed_weights(model), given)
    assert (found - bare).abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("role", ["in", "out"])
def test_one_of_both_products(role: str) -> None:
    given, plan = inputs("mixtral"), Plan.uniform(LoRA(r=3, sites=[f"expert.{role}"]))
    model, both = attached(plan=plan), attached()
    ours = {u.path: dict(u.named_parameters()) for u in model.pelt_attachment.submodules["lora"]}
    other = "out" if role == "in" else "in"
    with torch.no_grad():
        for update in both.pelt_attachment.submodules["lora"]:
            own = dict(update.named_parameters())
            own[f"B_{other}"].zero_()
            for name, tensor in ours[update.path].items():
                own[name].copy_(tensor)
        torch.testing.assert_close(output(model, given), output(both, given))


def test_gradients_are_those_of_changed_weights() -> None:
    """Of dA and dB by the chain rule, from the gradient of W."""
    model, given = attached(), inputs("mixtral")
    output(model, given).square().sum().backward()
    found = {
        update.path: {name: p.grad.clone() for name, p in update.named_parameters()}
        for update in model.pelt_attachment.submodules["lora"]
    }
    factors = {
        update.path: (update.scale, {n: p.detach() for n, p in update.named_parameters()})
        for update in model.pelt_attachment.submodules["lora"]
    }
    bare = with_changed_weights(copy.deepcopy(model))
    bare.requires_grad_(True)
    output(bare, given).square().sum().backward()
    for path, (scale, own) in factors.items():
        host = bare.get_submodule(path)
        for role, name in (("in", "gate_up_proj"), ("out", "down_proj")):
            moved: Any = getattr(host, name).grad
            A, B = own[f"A_{role}"], own[f"B_{role}"]
            for factor, expected in ((f"A_{role}", B.mT @ moved), (f"B_{role}", moved @ A.mT)):
                torch.testing.assert_close(
                    found[path][factor], scale * expected, atol=1e-3, rtol=1e-3
                )


def test_it_equals_pefts() -> None:
    """PEFT's target_parameters, whose B has the experts in the last of the joined columns."""
    model, given = attached(), inputs("mixtral")
    config = LoraConfig(
        r=3,
        lora_alpha=16,
        target_modules=[],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )
    other = get_peft_model(build("mixtral"), config)
    with torch.no_grad():
        for update in model.pelt_attachment.submodules["lora"]:
            own = dict(update.named_parameters())
            for module in other.modules():
                name = getattr(module, "parameter_name", "")
                path = next((n for n, m in other.named_modules() if m is module), "")
                if not name or f"{update.path}." not in f"{path}.":
                    continue
                role = "out" if name == "down_proj" else "in"
                A, B = own[f"A_{role}"], own[f"B_{role}"]
                module.lora_A["default"].weight.copy_(A.flatten(0, 1))
                module.lora_B["default"].weight.copy_(B.permute(1, 2, 0).flatten(1))
        found, expected = output(model, given), output(other, given)
    bare = output(build("mixtral"), given)
    assert (found - bare).abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_experts_without_tokens_get_no_gradient() -> None:
    model = attached()
    output(model, inputs("mixtral", batch=1, length=1)).sum().backward()
    update = model.pelt_attachment.submodules["lora"][0]
    moved = update.A_in.grad.flatten(1).any(1)
    assert moved.sum() == 2  # of four, each token has two
    assert update.A_in.grad.isfinite().all()


@pytest.mark.parametrize("rank", [1, 8, 12])
def test_every_rank_is_aligned(rank: int) -> None:
    """Grouped products of GPUs read rows of 16 bytes, so that factors are filled with zeros."""
    model = attached(plan=Plan.uniform(LoRA(r=rank, sites=EXPERTS)))
    given = inputs("mixtral")
    with torch.no_grad():
        found = output(model, given)
        expected = output(with_changed_weights(model), given)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_activation_checkpointing() -> None:
    model, given = attached(), inputs("mixtral")
    model.train()
    grads = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        output(model, given).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert grads[0]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled() -> None:
    model, given = attached(), inputs("mixtral", padded=False)
    with torch.no_grad():
        expected = output(model, given)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(output(compiled, given), expected, atol=1e-5, rtol=1e-5)


def test_copies_and_pickles() -> None:
    model, given = attached(), inputs("mixtral")
    with torch.no_grad():
        expected = output(model, given)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(output(other, given), expected)
            update = other.pelt_attachment.submodules["lora"][0]
            assert update.host is other.get_submodule(update.path)
            update.B_in.add_(1)  # of the copy alone
            assert not torch.equal(output(other, given), expected)
        assert torch.equal(output(model, given), expected)


def test_files(tmp_path: Path) -> None:
    model, given = attached(), inputs("mixtral")
    save_adapters(model, tmp_path)
    other = build("mixtral")
    load_adapters(other, tmp_path)
    with torch.no_grad():
        assert torch.equal(output(other, given), output(model, given))


def test_named_adapters() -> None:
    model, given = build("mixtral"), inputs("mixtral")
    with torch.no_grad():
        bare = output(model, given)
        adapters = Adapters(model)
        awaken(adapters.add("one", PLAN), std=0.2, seed=1)
        one = output(model, given)
        awaken(adapters.add("two", PLAN), std=0.2, seed=2)
        two = output(model, given)
        assert not torch.allclose(one, two)
        adapters.activate("one")
        assert torch.equal(output(model, given), one)
        adapters.activate("two")
        assert torch.equal(output(model, given), two)
        adapters.deactivate()
        assert torch.equal(output(model, given), bare)
        assert not any("forward" in vars(module) for module in model.modules())


def test_beside_other_sites() -> None:
    attachment = attach(build("mixtral"), Plan.uniform(LoRA(r=2, sites=("query", *EXPERTS))))
    width, inner, experts, blocks = 32, 64, 4, 2
    query = 2 * (width + width)
    both = 2 * experts * (width + 2 * inner + inner + width)
    assert attachment.counts["lora"].trained == blocks * (query + both)
    sites = attachment.anatomy.select(["query", *EXPERTS])
    cost = LoRA().cost([site for site in sites if site.block == 0])
    assert cost.of(2) == query + both


def test_dropout_acts_in_training_alone() -> None:
    model = attached(plan=Plan.uniform(LoRA(r=3, dropout=0.5, sites=EXPERTS)))
    given = inputs("mixtral")
    with torch.no_grad():
        assert torch.equal(output(model, given), output(model, given))
        model.train()
        assert not torch.equal(output(model, given), output(model, given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, given = attached(), inputs("mixtral")
    with torch.no_grad():
        expected = output(model, given)
    half = build("mixtral").to(dtype)
    attachment = attach(half, PLAN)
    awaken(attachment, std=0.2)
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    with torch.no_grad():
        found = output(half, given)
    assert found.dtype == dtype
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_autocast() -> None:
    model, given = attached(), inputs("mixtral")
    expected = output(model, given).detach()
    with torch.autocast("cpu", torch.bfloat16):
        found = output(model, given)
    found.float().sum().backward()
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_attached_on_the_meta_device() -> None:
    real, empty = build("mixtral"), without_values("mixtral")
    for model in (real, empty):
        attach(model, PLAN, seed=4)
    empty.load_state_dict(build("mixtral").state_dict(), assign=True)
    for update, other in zip(
        real.pelt_attachment.submodules["lora"],
        empty.pelt_attachment.submodules["lora"],
        strict=True,
    ):
        for name, tensor in update.named_parameters():
            assert torch.equal(dict(other.named_parameters())[name], tensor)
    with torch.no_grad():
        given = inputs("mixtral")
        assert torch.equal(output(empty, given), output(real, given))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (LoRA(sites=EXPERTS, gate=Gate()), "LoRA has a gate at 'expert.in'"),
        (LoRA(sites=EXPERTS, init="pissa"), "LoRA has init='pissa' at 'expert.in'"),
        (BitFit(sites=["expert.out"]), "BitFit does not extend stacked weights of experts"),
        (IA3(sites=["expert.out"]), "IA3 does not extend stacked weights|not one"),
        (Adapter(sites=["expert.out"]), "expert.out"),
    ],
)
def test_what_experts_do_not_take(method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(build("mixtral"), Plan.uniform(method))


def test_experts_take_one_update() -> None:
    model = build("mixtral")
    with pytest.raises(ValueError, match="experts take one LoRA"):
        attach(model, Plan.uniform(LoRA(sites=EXPERTS), LoRA(sites=EXPERTS, name="second")))
    assert not any("forward" in vars(module) for module in model.modules())


def test_models_without_such_experts_say_so() -> None:
    with pytest.raises(ValueError, match=r"llama has no site 'expert\.in': .*'ffn'"):
        attach(tiny_llama(), PLAN)


def test_what_cannot_be_merged_or_written_is_refused(tmp_path: Path) -> None:
    model = attached()
    for refused in (lambda: merge(model), lambda: save_peft(model, tmp_path)):
        with pytest.raises(ValueError, match=r"experts at model\.layers\.0\.mlp\.experts cannot"):
            refused()


def test_distributed_experts_are_refused() -> None:
    model = attached()
    for module in model.modules():
        if hasattr(module, "_is_expert_parallel"):
            module._is_expert_parallel = True
    with pytest.raises(ValueError, match="expert parallelism"):
        model(**inputs("mixtral"))


@pytest.mark.parametrize("name", ["gpt_oss", "nemotron_h"])
def test_other_layouts_of_the_weights(name: str) -> None:
    """Transposed and interleaved with biases, and without a gate."""
    from families.catalogue import by_label

    model = by_label()[name].build()
    ids = torch.arange(8)[None] % 10
    attachment = attach(model, PLAN)
    awaken(attachment, std=0.2)
    updates = [
        (u.path, u.scale, {n: p.detach().clone() for n, p in u.named_parameters()})
        for u in attachment.submodules["lora"]
    ]
    with torch.no_grad():
        found = model(ids).last_hidden_state
        detach(model)
        bare = model(ids).last_hidden_state
        for path, scale, own in updates:
            host: nn.Module = model.get_submodule(path)
            first = "gate_up_proj" if hasattr(host, "gate_up_proj") else "up_proj"
            for role, parameter in (("in", first), ("out", "down_proj")):
                delta: Tensor = scale * own[f"B_{role}"] @ own[f"A_{role}"]
                weight = getattr(host, parameter)
                weight.add_(delta if weight.shape == delta.shape else delta.mT)
        expected = model(ids).last_hidden_state
    assert (found - bare).abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert name not in ZOO
