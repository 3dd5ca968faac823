"""Attaching and detaching: idempotent, deterministic, without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from zoo import ZOO, build

from lightning_pelt import (
    Adapter,
    FullFineTuning,
    HeadOnly,
    LoRA,
    Plan,
    Prefix,
    UniPELT,
    attach,
    detach,
)
from lightning_pelt.attach import find_attachment, find_model
from lightning_pelt.methods.base import Part, Place
from lightning_pelt.testing import hook_counts, is_ours, tiny_bert, tiny_gpt2

TOKENS = torch.arange(3, 19).view(2, 8)


def trained(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def ours(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items() if is_ours(n)}


class Wrapped(nn.Module):
    """A stranger's module around a model."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = model
        self.extra = nn.Linear(3, 3)


def test_equal_plans_attach_once() -> None:
    model = tiny_bert()
    attachment = attach(model, UniPELT())
    hooks, names = hook_counts(model), set(model.state_dict())
    assert attach(model, UniPELT()) is attachment
    assert attach(Wrapped(model), UniPELT(), seed=5) is attachment
    assert hook_counts(model) == hooks
    assert set(model.state_dict()) == names


def test_another_plan_is_refused() -> None:
    model = tiny_bert()
    attach(model, Plan.uniform(LoRA()))
    with pytest.raises(ValueError, match=r"another plan already.*LoRA\(r=8.*LoRA\(r=4.*detach"):
        attach(model, Plan.uniform(LoRA(r=4)))
    detach(model)
    assert attach(model, Plan.uniform(LoRA(r=4))).counts["lora"].trained == 4 * 4 * 64


def test_find_attachment() -> None:
    module = Wrapped(tiny_bert())
    assert find_attachment(module) is None
    attachment = attach(module, HeadOnly())
    assert find_attachment(module) is attachment
    assert find_attachment(module.backbone) is attachment
    assert find_attachment(nn.ModuleDict({"deep": nn.ModuleList([module])})) is attachment
    assert attachment.model is module.backbone
    assert find_attachment(module.extra) is None


def test_detach_by_function() -> None:
    module = Wrapped(tiny_bert())
    attach(module, UniPELT())
    detach(module)
    assert not any(is_ours(name) for name in module.state_dict())
    assert trained(module) == {name for name, _ in module.named_parameters()}
    with pytest.raises(ValueError, match="nothing is attached to Wrapped"):
        detach(module)


def test_a_strangers_parameters_are_not_touched() -> None:
    module = Wrapped(tiny_bert())
    module.extra.bias.requires_grad_(False)
    attach(module, HeadOnly())
    assert module.extra.weight.requires_grad
    assert not module.extra.bias.requires_grad


# Which model.


def test_path() -> None:
    module = nn.ModuleDict({"student": tiny_bert(), "teacher": tiny_gpt2()})
    with pytest.raises(ValueError, match=r"2 Hugging Face models \(student, teacher\).*path="):
        attach(module, HeadOnly())
    attachment = attach(module, HeadOnly(), path="student")
    assert attachment.model is module["student"]
    assert trained(module["teacher"]) == {n for n, _ in module["teacher"].named_parameters()}
    with pytest.raises(ValueError, match="no Hugging Face model at 'techer': there is student, te"):
        attach(module, HeadOnly(), path="techer")


def test_the_outermost_model_is_meant() -> None:
    model = tiny_bert()
    assert find_model(Wrapped(model)) is model
    assert find_model(model, "bert") is model.bert


def test_no_model() -> None:
    with pytest.raises(ValueError, match=r"Linear holds no Hugging Face model .*assign one"):
        attach(nn.Linear(1, 1), HeadOnly())


# The head.


def leaves(*paths: str) -> set[str]:
    return {f"{path}.{leaf}" for path in paths for leaf in ("weight", "bias")}


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("bert", leaves("classifier")),
        ("vit", leaves("classifier")),
        ("distilbert", leaves("pre_classifier", "classifier")),
        ("roberta", leaves("classifier.dense", "classifier.out_proj")),
        ("wav2vec2", leaves("projector", "classifier")),
        ("modernbert", {"head.dense.weight", "head.norm.weight", *leaves("classifier")}),
        ("gpt2", set()),
        ("llama", set()),
        ("t5", set()),
        ("bart", set()),
        ("whisper", set()),
    ],
)
def test_a_new_head_is_trained_and_a_vocabulary_is_not(name: str, head: set[str]) -> None:
    model = build(name)
    attachment = attach(model, HeadOnly())
    assert trained(model) == head
    assert attachment.owned == trained(model)
    assert set(attachment.parameter_groups()) == ({"head"} if trained(model) else set())


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bart"])
def test_classifiers_of_generative_models(name: str) -> None:
    """They have no vocabulary projection, so what lies outside their base is a new head."""
    config = ZOO[name].config()
    config.num_labels, config.pad_token_id = 3, 0
    model = AutoModelForSequenceClassification.from_config(config)
    attach(model, HeadOnly())
    heads = ("score.", "classification_head.")
    assert trained(model)
    assert trained(model) == {n for n, _ in model.named_parameters() if n.startswith(heads)}


@pytest.mark.parametrize("auto", [AutoModelForTokenClassification, AutoModelForQuestionAnswering])
def test_heads_of_other_tasks(auto: Any) -> None:
    model = auto.from_config(ZOO["bert"].config())
    attach(model, HeadOnly())
    assert {name.rpartition(".")[2] for name in trained(model)} == {"weight", "bias"}
    assert all(name.startswith(("classifier", "qa_outputs")) for name in trained(model))


def test_named_head() -> None:
    model = tiny_bert()
    attachment = attach(model, HeadOnly(), head=["bert.pooler", "classifier"])
    assert trained(model) == leaves("bert.pooler.dense", "classifier")
    assert attachment.owned == trained(model)
    assert attachment.head_size == 32 * 32 + 32 + 3 * 32 + 3


def test_no_head() -> None:
    model = tiny_bert()
    attachment = attach(model, Plan.uniform(LoRA()), head=[])
    assert all(is_ours(name) for name in trained(model))
    assert attachment.head_size == 0


def test_a_vocabulary_that_is_named_is_trained_where_it_is_tied() -> None:
    """GPT-2's projection is its embedding: one parameter with two names, both of them ours."""
    model = tiny_gpt2()
    attachment = attach(model, HeadOnly(), head=["lm_head"])
    assert trained(model) == {"transformer.wte.weight"}
    assert attachment.owned == {"transformer.wte.weight", "lm_head.weight"}
    assert attachment.head_size == 100 * 32
    assert attachment.parameter_groups()["head"] == [model.lm_head.weight]


def test_unknown_head() -> None:
    model = tiny_bert()
    before = trained(model)
    with pytest.raises(ValueError, match="head 'clasifier': did you mean 'classifier'"):
        attach(model, HeadOnly(), head=["clasifier"])
    assert trained(model) == before
    attach(model, HeadOnly())


# The weights.


def test_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        model = tiny_bert()
        attach(model, UniPELT(), seed=seed)
        states.append(ours(model))
        torch.rand(3)
    first, same, other = states
    assert all(torch.equal(first[name], same[name]) for name in first)
    drawn = [name for name, tensor in first.items() if tensor.unique().numel() > 1]
    assert len(drawn) > 10
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    attach(tiny_bert(), UniPELT())
    # The model above was drawn from the same generator before anything was attached.
    after = torch.random.get_rng_state()
    torch.manual_seed(7)
    tiny_bert()
    assert torch.equal(torch.random.get_rng_state(), after)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), expected)


def test_other_devices_are_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their dropout in the next step must not depend on when something was attached."""
    model = build("bert")
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("seeds every device"))
    attach(model, UniPELT())


def test_new_weights_go_to_the_device_of_their_host() -> None:
    model = tiny_bert()
    with torch.device("meta"):  # as a trainer may set where modules are made
        attach(model, UniPELT())
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize("training", [True, False])
def test_new_submodules_are_in_the_mode_of_their_host(training: bool) -> None:
    model = tiny_bert().train(training)
    attach(model, UniPELT([LoRA(dropout=0.5), Adapter()]))
    assert {module.training for module in model.modules()} == {training}


def test_train_mode() -> None:
    """Submodules and head train; whether the base's dropout is on is up to the caller."""
    model = tiny_bert()
    attachment = attach(model, Plan.uniform(LoRA(dropout=0.5)))
    attachment.train(base_dropout=False)
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes["classifier"]
    assert modes["bert.encoder.layer.0.attention.self.pelt.lora_down.dropout"]
    assert not modes["bert.encoder.layer.0.output.dropout"]
    attachment.train()
    assert all(module.training for module in model.modules())


# What is trained.


@pytest.mark.parametrize("plan", [UniPELT(), Plan.uniform(LoRA()), HeadOnly()])
def test_the_base_is_frozen(plan: Plan) -> None:
    model = tiny_bert()
    head = {"classifier.weight", "classifier.bias"}
    attachment = attach(model, plan)
    names = {name for name, _ in model.named_parameters()}
    assert trained(model) == {name for name in names if is_ours(name)} | head
    assert trained(model) <= attachment.owned


def test_full_fine_tuning() -> None:
    model = tiny_bert()
    attachment = attach(model, FullFineTuning())
    assert trained(model) == {name for name, _ in model.named_parameters()}
    assert attachment.owned == set(model.state_dict())
    groups = attachment.parameter_groups()
    assert set(groups) == {"head", "base"}
    assert sum(len(group) for group in groups.values()) == len(list(model.parameters()))


def test_parameter_groups() -> None:
    model = tiny_bert()
    attachment = attach(model, UniPELT())
    groups = attachment.parameter_groups()
    assert list(groups) == ["adapter", "prefix", "lora", "gate", "head"]
    members = [parameter for group in groups.values() for parameter in group]
    assert len(set(members)) == len(members)
    assert set(members) == {p for p in model.parameters() if p.requires_grad}
    lora = attachment.parameters_of("lora")
    views = [view for view in attachment.gates.values() if view.method == "lora"]
    assert lora == groups["lora"] + [p for view in views for p in view.parameters()]


def test_parameter_groups_come_in_one_order() -> None:
    """Optimizer states are matched by place, across runs and processes."""
    orders = []
    for _ in range(2):
        model = tiny_bert()
        names = {}
        attachment = attach(model, UniPELT())
        names = {p: name for name, p in model.named_parameters()}
        groups = attachment.parameter_groups()
        orders.append({key: [names[p] for p in group] for key, group in groups.items()})
    assert orders[0] == orders[1]


# What goes wrong on the way.


class Broken(LoRA):
    def build(self, place: Place) -> list[Part]:
        if place.sites[0].block == 1:
            raise RuntimeError("no memory left")
        return super().build(place)


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        (Plan.uniform(Broken()), "no memory left"),
        (Plan.uniform(Prefix(), LoRA(), Prefix(name="again")), "has a prefix already"),
        (Plan.uniform(LoRA(sites=("nowhere",))), "unknown site"),
    ],
)
def test_a_failure_leaves_no_trace(plan: Plan, error: str) -> None:
    model = tiny_bert()
    model.bert.pooler.dense.weight.requires_grad_(False)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    names, hooks = list(model.state_dict()), hook_counts(model)
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    with pytest.raises((RuntimeError, ValueError), match=error):
        attach(model, plan)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert list(model.state_dict()) == names
    assert hook_counts(model) == hooks
    assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes


def test_repr_says_what_is_attached() -> None:
    shown = repr(attach(tiny_bert(), UniPELT([LoRA(r=4)])))
    assert "LoRA(r=4" in shown
    assert f"{4 * 4 * 64 + 4 * 33:,} parameters, 4 gates" in shown
