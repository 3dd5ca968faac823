"""Merging: right, or refused with the model as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from transformers import PreTrainedModel
from zoo import build, inputs, output

from lightning_pelt import Adapter, Gate, LoRA, Plan, attach, merge
from lightning_pelt.attach import find_attachment
from lightning_pelt.testing import awaken

QUERY = "bert.encoder.layer.1.attention.self.query"


def trained(name: str, plan: Plan) -> PreTrainedModel:
    """An attached model in which every submodule has an effect."""
    model = build(name)
    awaken(attach(model, plan))
    return model.eval()


@torch.no_grad()
def run(model: PreTrainedModel, name: str = "bert") -> Tensor:
    return output(model, inputs(name))


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        ("bert", LoRA(r=2)),
        ("bert", LoRA(r=4, alpha=8, rslora=True, sites=("query", "value", "ffn.in", "ffn.out"))),
        ("gpt2", LoRA(r=2)),  # query and value are parts of one transposed weight
        ("gpt2", LoRA(r=3, rslora=True, sites=("key", "output", "ffn.in"), dropout=0.5)),
        ("gpt_neox", LoRA(r=2)),  # heads interleaved
        ("phi3", LoRA(r=2, sites=("query", "key", "value"))),
        ("t5", LoRA(r=2)),
        ("albert", LoRA(r=2)),  # one block that is used twice
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_merged_equals_unmerged(name, lora):
    model = trained(name, Plan.uniform(lora))
    names = set(build(name).state_dict())
    before = run(model, name)
    assert not torch.allclose(run(build(name), name), before, atol=1e-3)
    merged = merge(model)
    assert merged is model
    assert find_attachment(model) is None
    assert set(model.state_dict()) == names
    torch.testing.assert_close(run(model, name), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_merged_equals_unmerged_in_other_dtypes(dtype):
    model = build("bert").to(dtype)
    awaken(attach(model, Plan.uniform(LoRA(r=2))))
    before = run(model)
    after = run(merge(model))
    scale = before.abs().max()
    assert ((after - before).abs() <= 4 * max(torch.finfo(dtype).eps, 1e-6) * scale).all()


def test_merging_follows_the_formula():
    model = trained("bert", Plan.uniform(LoRA(r=2, alpha=6, sites=("query",))))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (a,) = (t for n, t in state.items() if ".layer.1." in n and n.endswith("lora_down.A"))
    b = state[f"{QUERY}.pelt.lora_up.B_query"]
    weight = model.get_submodule(QUERY).weight.detach().clone()
    merge(model)
    after = model.get_submodule(QUERY).weight
    torch.testing.assert_close(after, weight + 6 / 2 * b @ a)


def test_an_untrained_update_merges_into_equal_weights():
    model = build("bert")
    attach(model, Plan.uniform(LoRA(r=2)))
    merge(model)
    expected = build("bert").state_dict()
    assert all(torch.equal(tensor, expected[n]) for n, tensor in model.state_dict().items())


# What is refused.


def test_what_cannot_be_merged_is_refused_and_left_alone():
    gated = trained("bert", Plan.uniform(LoRA(r=2, gate=Gate())))
    before = run(gated)
    with pytest.raises(ValueError, match=r"'lora' is gated: its contribution differs from input"):
        merge(gated)
    assert torch.equal(run(gated), before)
    with pytest.raises(ValueError, match="Adapter cannot be merged"):
        merge(trained("bert", Plan.uniform(LoRA(r=2), Adapter(bottleneck=4))))
    with pytest.raises(ValueError, match="nothing is attached"):
        merge(build("bert"))


class Packed(Tensor):
    """A weight of another library, as quanto and torchao have them: it adds to a copy."""

    @classmethod
    def __torch_function__(cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None):
        if function is Tensor.add_:
            return args[0].clone()
        return super().__torch_function__(function, kinds, args, kwargs or {})


class Rounding(nn.Linear):
    """Rounds its weight in every forward, as quanto does until it is frozen."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, (self.weight * 16).round() / 16, self.bias)


class Cached(nn.Linear):
    """Computes with a copy of its weight."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("copy", self.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.copy, self.bias)  # type: ignore[arg-type]


class WithoutWeight(nn.Module):
    """A quantised layer that keeps packed values under other names, as HQQ does."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("packed", linear.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.packed.T  # type: ignore[operator]


def replaced(new: Any) -> Any:
    def change(model: nn.Module) -> None:
        old: Any = model.get_submodule(QUERY)
        if isinstance(new, type) and issubclass(new, nn.Linear):
            layer = new(old.in_features, old.out_features)
            layer.load_state_dict(old.state_dict(), strict=False)
        else:
            layer = new(old)
        model.set_submodule(QUERY, layer)

    return change


def with_weight(convert: Any) -> Any:
    def change(model: nn.Module) -> None:
        layer: Any = model.get_submodule(QUERY)
        layer.weight = nn.Parameter(convert(layer.weight.detach()), requires_grad=False)

    return change


def tie(model: nn.Module) -> None:
    key: Any = model.get_submodule(QUERY.replace("query", "key"))
    key.weight = model.get_submodule(QUERY).weight


HOSTS = {
    "tensor-subclass": (with_weight(lambda w: w.as_subclass(Packed)), "its weight is Packed"),
    "rounded-in-forward": (replaced(Rounding), "Rounding. does not compute with its weight alone"),
    "computes-with-a-copy": (replaced(Cached), "Cached. does not compute with its weight alone"),
    "no-weight": (replaced(WithoutWeight), "WithoutWeight. has no weight of its own"),
    "parametrized": (
        lambda model: parametrizations.weight_norm(model.get_submodule(QUERY)),
        "has no weight of its own",
    ),
    "pruned": (
        lambda model: prune.l1_unstructured(model.get_submodule(QUERY), "weight", 0.5),
        "has no weight of its own",
    ),
    "tied": (tie, r"is also that of bert\.encoder\.layer\.1\.attention\.self\.key"),
}


@pytest.mark.parametrize(("change", "message"), HOSTS.values(), ids=HOSTS.keys())
def test_a_layer_that_does_not_follow_its_weight_is_refused(change, message):
    """The layer is in the second block, so that the first one would be merged already."""
    model = build("bert")
    change(model)
    awaken(attach(model, Plan.uniform(LoRA(r=2))))
    before = run(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"layer\.1\.attention\.self\.query.*{message}"):
        merge(model)
    assert torch.equal(run(model), before)
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())
    assert find_attachment(model) is not None


def test_a_quantised_weight_is_not_merged_into():
    model = trained("bert", Plan.uniform(LoRA(r=2)))
    with_weight(lambda weight: weight.to(torch.int8))(model)
    first: Any = model.get_submodule("bert.encoder.layer.0.attention.self.query")
    before = first.weight.detach().clone()
    with pytest.raises(ValueError, match=r"query is quantised.* torch\.int8"):
        merge(model)
    assert torch.equal(first.weight, before)
    assert find_attachment(model) is not None


def test_an_update_with_nan_is_refused():
    model = trained("bert", Plan.uniform(LoRA(r=2)))
    with torch.no_grad():
        attached: Any = model.get_submodule(QUERY)
        attached.pelt.lora_up.B_query[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"query contains NaN"):
        merge(model)
    assert find_attachment(model) is not None
