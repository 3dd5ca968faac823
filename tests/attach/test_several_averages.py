"""Averages of adapters, against peft and explicit formulas."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import merge_utils
from torch import Tensor
from transformers import PreTrainedModel
from zoo import build, inputs, output

from lightning_pelt import IA3, Adapter, BitFit, Gate, LoRA, Plan, UniPELT
from lightning_pelt.attach.several import Adapters
from lightning_pelt.attach.several.averaging import combination, dare, plain, ties
from lightning_pelt.testing import awaken

PLAN = Plan.uniform(LoRA(r=4, gate=None), Adapter(bottleneck=4, gate=Gate()), norms=True)


def tensors(count: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(8, 6, generator=draw) for _ in range(count)]


@torch.no_grad()
def several(plan: Plan = PLAN, count: int = 2) -> Adapters:
    adapters = Adapters(build("bert"))
    for number in range(count):
        attachment = adapters.add(f"a{number}", plan, seed=number)
        awaken(attachment, seed=number)
        draw = torch.Generator().manual_seed(number)
        for parameter in attachment.parameter_groups()["head"]:
            parameter.add_(torch.randn(parameter.shape, generator=draw))
    adapters.model.eval()
    return adapters


def weights_of(adapters: Adapters, name: str) -> dict[str, Tensor]:
    with adapters.using(name):
        named = adapters.model.named_parameters()
        return {n: p.detach().clone() for n, p in named if p.requires_grad}


@torch.no_grad()
def run(model: PreTrainedModel) -> Tensor:
    return output(model, inputs("bert"))


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_ties_equals_peft(density):
    expected = merge_utils.ties(tensors(), torch.ones(3), density)
    found = ties(tensors(), torch.full((3,), 1 / 3), density)
    torch.testing.assert_close(found, expected)


def test_ties_with_weights_is_the_weighted_mean_of_the_elected():
    found = ties(tensors(), torch.tensor([0.6, 0.3, 0.1]), 1.0)
    for place in range(48):
        values = [float(t.flatten()[place]) for t in tensors()]
        pairs = list(zip((0.6, 0.3, 0.1), values, strict=True))
        positive = sum(w * v for w, v in pairs) >= 0
        kept = [(w, v) for w, v in pairs if (v > 0) == positive]
        mean = sum(w * v for w, v in kept) / sum(w for w, _ in kept)
        assert found.flatten()[place].item() == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("density", [0.2, 0.9])
def test_dare_equals_peft(density):
    weights = torch.tensor([0.5, 0.3, 0.2])
    torch.manual_seed(3)
    expected = merge_utils.dare_linear(tensors(), weights, density)
    found = dare(tensors(), weights, density, torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, expected)


def test_dare_keeps_the_expected_value():
    weights, draw = torch.tensor([0.5, 0.5]), torch.Generator().manual_seed(0)
    pair = [torch.full((100_000,), 2.0), torch.full((100_000,), 4.0)]
    assert dare(pair, weights, 0.3, draw).mean().item() == pytest.approx(3.0, rel=0.02)


def test_plain_equals_peft():
    weights = torch.tensor([0.5, 0.3, 0.2])
    expected = merge_utils.task_arithmetic(tensors(), weights)
    torch.testing.assert_close(plain(tensors(), weights), expected)


def test_lora_equals_add_weighted_adapter_of_peft():
    """peft weights A and B by sqrt(w s), s the scale, and the new scale is 1."""
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["query", "value"])
    theirs = get_peft_model(build("bert"), config, adapter_name="a0")
    theirs.add_adapter("a1", config)
    ours = several(Plan.uniform(LoRA(r=4, alpha=4.0)))
    for name in ("a0", "a1"):
        with ours.using(name), torch.no_grad():
            for block in range(2):
                host = ours.model.bert.encoder.layer[block].attention.self
                A = host.pelt["lora_down"].A.chunk(2)
                for role, down in zip(("query", "value"), A, strict=True):
                    layer = theirs.base_model.model.bert.encoder.layer[block].attention.self
                    target = getattr(layer, role)
                    target.lora_A[name].weight.copy_(down)
                    target.lora_B[name].weight.copy_(
                        getattr(getattr(host, role).pelt["lora_up"], f"B_{role}")
                    )
    shares = (0.7, 0.3)
    theirs.add_weighted_adapter(
        ["a0", "a1"], [share**2 for share in shares], "mean", combination_type="linear"
    )
    ours.average("mean", ["a0", "a1"], weights=shares)
    for block in range(2):
        layer = theirs.base_model.model.bert.encoder.layer[block].attention.self
        host = ours.model.bert.encoder.layer[block].attention.self
        for role, down in zip(("query", "value"), host.pelt["lora_down"].A.chunk(2), strict=True):
            torch.testing.assert_close(getattr(layer, role).lora_A["mean"].weight, down)
            up = getattr(getattr(host, role).pelt["lora_up"], f"B_{role}")
            torch.testing.assert_close(getattr(layer, role).lora_B["mean"].weight, up)


def test_every_tensor_is_averaged():
    adapters = several()
    adapters.average("mean", ["a0", "a1"], weights=[3, 1])
    assert adapters.active == "mean"
    one, two, mean = (weights_of(adapters, name) for name in ("a0", "a1", "mean"))
    assert {"classifier.weight", "bert.embeddings.LayerNorm.weight"} <= mean.keys()
    assert any("gate" in name for name in mean) and any("lora" in name for name in mean)
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, 0.75 * one[name] + 0.25 * two[name])


@pytest.mark.parametrize("plan", [PLAN, UniPELT(), Plan.uniform(IA3()), Plan.uniform(BitFit())])
def test_the_average_of_one_is_itself(plan):
    adapters = several(plan, count=1)
    expected = run(adapters.model)
    adapters.average("mean", ["a0", "a0", "a0"])
    torch.testing.assert_close(run(adapters.model), expected, rtol=1e-5, atol=1e-5)


def test_ties_and_dare_leave_heads_norms_and_gates_to_the_plain_average():
    adapters = several()
    names = ["a0", "a1"]
    adapters.average("mean", names)
    adapters.average("ties", names, method="ties", density=0.5)
    adapters.average("dare", names, method="dare", density=0.5, seed=1)
    mean, others = weights_of(adapters, "mean"), [weights_of(adapters, n) for n in ("ties", "dare")]
    one, two = weights_of(adapters, "a0"), weights_of(adapters, "a1")
    for name, tensor in mean.items():
        own = "pelt" in name and "gate_" not in name
        for other in others:
            assert torch.equal(tensor, other[name]) != own, name
        if own:
            expected = merge_utils.ties([one[name], two[name]], torch.ones(2), 0.5)
            torch.testing.assert_close(others[0][name], expected)


def test_dare_follows_its_seed():
    adapters = several()
    found = []
    for number, seed in enumerate((1, 1, 2)):
        adapters.average(f"d{number}", ["a0", "a1"], method="dare", density=0.5, seed=seed)
        found.append(run(adapters.model))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.slow
def test_an_average_is_independent_and_can_be_saved(tmp_path):
    adapters = several()
    before = run(adapters.model)
    adapters.average("mean", ["a0", "a1"])
    mean = run(adapters.model)
    adapters.save("mean", tmp_path)
    awaken(adapters["mean"], seed=9)
    adapters.activate("a1")
    assert torch.equal(run(adapters.model), before)
    adapters.load("again", tmp_path)
    assert torch.equal(run(adapters.model), mean)
    for name in adapters.names:
        adapters.delete(name)
    assert torch.equal(run(adapters.model), run(build("bert")))


@pytest.mark.slow
def test_refusals():
    adapters = several()
    adapters.add("other", Plan.uniform(LoRA(r=2)))
    adapters.add("five", PLAN, labels=5)
    adapters.add("ia3", Plan.uniform(IA3()))
    adapters.activate("a0")
    before = run(adapters.model)
    for names, options, text in [
        (["a0", "other"], {}, "'a0' and 'other' have different plans"),
        (["a0", "five"], {}, "other labels"),
        (["a0", "a2"], {}, "unknown adapter 'a2'"),
        ([], {}, "expected the names"),
        ("a0", {}, "expected the names"),
        (["a0", "a1"], {"weights": [1]}, "expected 2 numbers"),
        (["a0", "a1"], {"weights": [1, -1]}, "at least 0"),
        (["a0", "a1"], {"method": "tie"}, "did you mean 'ties'"),
        (["a0", "a1"], {"method": "ties"}, "density=None"),
        (["a0", "a1"], {"method": "dare", "density": 1.5}, "density=1.5"),
        (["a0", "a1"], {"density": 0.5}, "has no effect"),
        (["ia3", "ia3"], {"method": "ties", "density": 0.5}, "neutral value of IA3"),
    ]:
        with pytest.raises(ValueError, match=text):
            adapters.average("mean", names, **options)
        assert adapters.active == "a0" and "mean" not in adapters
        assert torch.equal(run(adapters.model), before)


def test_density_of_one_keeps_everything():
    shares = torch.full((3,), 1 / 3)
    for method in ("ties", "dare"):
        found = combination(method, 1.0, 0)([tensors()[0]] * 3, shares)
        torch.testing.assert_close(found, tensors()[0])
