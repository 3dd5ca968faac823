"""State dicts: ours and nothing else, in and out, whatever wraps the model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lightning_pelt import IA3, Adapter, FullFineTuning, HeadOnly, LoRA, Plan, UniPELT, attach
from lightning_pelt.attach import Attachment
from lightning_pelt.attach.names import plain
from lightning_pelt.testing import awaken, is_ours, tiny_bert, tiny_gpt2

TOKENS = torch.arange(3, 19).view(2, 8)
PLAN = UniPELT([LoRA(r=4), Adapter(reduction_factor=2)])


def tuned(plan: Plan = PLAN, seed: int = 0) -> Any:
    model = tiny_bert()
    awaken(attach(model, plan, seed=seed), seed=seed)
    with torch.no_grad():
        model.classifier.bias.add_(seed)
    return model


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


class Stranger(nn.Module):
    """Somebody's module with weights of its own beside, before and behind the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.before = nn.Linear(2, 2)
        self.model = model
        self.model_extra = nn.Linear(2, 2)  # begins like the model's own prefix
        self.register_buffer("steps", torch.zeros(()))


OTHERS = {"before.weight", "before.bias", "model_extra.weight", "model_extra.bias", "steps"}


# Saving.


@pytest.mark.parametrize("plan", [PLAN, UniPELT(), Plan.uniform(IA3()), HeadOnly()])
def test_state_dict_is_ours(plan: Plan) -> None:
    model = tiny_bert()
    base = set(model.state_dict())
    attachment = attach(model, plan)
    state = model.state_dict()
    assert set(state) == attachment.owned
    assert {name for name in state if not is_ours(name)} == {"classifier.weight", "classifier.bias"}
    assert attachment.base == base - {"classifier.weight", "classifier.bias"}


def test_state_dict_holds_what_it_needs_and_no_byte_more() -> None:
    """Every trained parameter, and how far each gate is open."""
    model = tiny_bert()
    attachment = attach(model, PLAN)
    held = sum(tensor.numel() for tensor in model.state_dict().values())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert held == trained + len(attachment.gates)


def test_full_fine_tuning_keeps_everything() -> None:
    model = tiny_bert()
    names = set(model.state_dict())
    attach(model, FullFineTuning())
    assert set(model.state_dict()) == names


def test_vocabulary_of_a_decoder_is_not_saved() -> None:
    model = tiny_gpt2()
    attach(model, PLAN)
    assert all(is_ours(name) for name in model.state_dict())


def test_a_strangers_keys_are_kept() -> None:
    module = Stranger(tuned())
    owned = module.model.__dict__["pelt_attachment"].owned
    assert set(module.state_dict()) == OTHERS | {f"model.{name}" for name in owned}


def test_detached_models_save_everything_again() -> None:
    model = tiny_bert()
    names = list(model.state_dict())
    attach(model, PLAN).detach()
    assert list(model.state_dict()) == names


# Loading.


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("wrap", [lambda model: model, Stranger], ids=["model", "stranger"])
def test_round_trip(wrap: Any, strict: bool) -> None:
    source, target = wrap(tuned(seed=1)), wrap(tuned(seed=2))
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    result = target.load_state_dict(state, strict=strict)
    assert result.missing_keys == result.unexpected_keys == []
    ours, theirs = (getattr(module, "model", module) for module in (source, target))
    assert torch.equal(logits(theirs), logits(ours))
    assert all(torch.equal(state[name], tensor) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize(
    "name", ["bert.embeddings.word_embeddings.weight", "bert.pooler.dense.bias"]
)
def test_the_base_is_not_replaced(name: str) -> None:
    model = tuned(seed=1)
    state = dict(tuned(seed=2).state_dict())
    before = {n: t.clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    state[name] = torch.ones_like(before[name])
    with pytest.raises(RuntimeError, match=rf"would replace the frozen base.*1 tensor: {name}"):
        model.load_state_dict(state)
    for other, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(tensor, before[other]), other


def test_openness_is_loaded_on_both_sides() -> None:
    """The buffer and its mirror on the host, which decides about bypasses."""
    source, target = tuned(), tuned()
    attachment: Attachment = source.__dict__["pelt_attachment"]
    attachment.gates["00/adapter"].set_open(0.25)
    attachment.gates["01/lora.query"].set_open(0.0)
    target.load_state_dict(source.state_dict())
    opened = {n: view.open for n, view in target.__dict__["pelt_attachment"].gates.items()}
    assert opened == {name: view.open for name, view in attachment.gates.items()}
    assert opened["00/adapter"] == 0.25
    assert torch.equal(logits(target), logits(source))


@pytest.mark.parametrize("strict", [True, False])
def test_missing_tensors_are_named(strict: bool) -> None:
    """Also where the base may be missing: a checkpoint without ours is of another plan."""
    model = tuned()
    state = dict(model.state_dict())
    gone = "bert.encoder.layer.0.attention.self.pelt.lora_down.A"
    del state[gone]
    with pytest.raises(RuntimeError, match=rf"It lacks 1 tensor: {gone}\. .*UniPELT.*LoRA\(r=4"):
        model.load_state_dict(state, strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_foreign_tensors_are_named(strict: bool) -> None:
    model = tuned(Plan.uniform(LoRA(r=4)))
    other = tuned().state_dict()
    with pytest.raises(
        RuntimeError,
        # In either block, two weights and two biases of gates, one of each for the adapter's gate,
        # two buffers, and four tensors of the adapter.
        match=r"It holds what the plan does not have: 24 tensors: .*pelt\.gate.* and 21 more\. ",
    ):
        model.load_state_dict(other, strict=strict)


def test_a_checkpoint_of_nothing_is_refused() -> None:
    """A frozen base alone would otherwise load without a word."""
    frozen = dict(tiny_bert().state_dict())
    with pytest.raises(RuntimeError, match="It lacks 32 tensors"):
        tuned().load_state_dict({k: v for k, v in frozen.items() if "classifier" not in k})


def test_other_shapes_are_refused() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        tuned(Plan.uniform(LoRA(r=2))).load_state_dict(tuned(Plan.uniform(LoRA(r=4))).state_dict())


def test_a_strangers_missing_keys_still_count() -> None:
    module = Stranger(tuned())
    state = module.state_dict()
    del state["before.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*before\.bias"):
        module.load_state_dict(state)
    assert module.load_state_dict(state, strict=False).missing_keys == ["before.bias"]


@pytest.mark.slow
def test_two_attached_models_side_by_side() -> None:
    pair = nn.ModuleDict({"a": tuned(seed=1), "b": tuned(Plan.uniform(IA3()), seed=2)})
    state = copy.deepcopy(pair.state_dict())
    assert {name.partition(".")[0] for name in state} == {"a", "b"}
    other = nn.ModuleDict({"a": tuned(seed=3), "b": tuned(Plan.uniform(IA3()), seed=4)})
    other.load_state_dict(state)
    for key in pair:
        assert torch.equal(logits(other[key]), logits(pair[key]))


# Wrappers.


@pytest.mark.parametrize(
    ("wrapped", "name"),
    [
        ("_orig_mod.bert.pooler.dense.bias", "bert.pooler.dense.bias"),
        ("bert.encoder.layer.0._orig_mod.output.pelt.x", "bert.encoder.layer.0.output.pelt.x"),
        ("a._fsdp_wrapped_module.b._checkpoint_wrapped_module.c", "a.b.c"),
        ("bert.pooler.dense.bias", "bert.pooler.dense.bias"),
    ],
)
def test_names_without_wrappers(wrapped: str, name: str) -> None:
    assert plain(wrapped) == name


@pytest.mark.slow
def test_compiled_whole() -> None:
    """``torch.compile`` puts ``_orig_mod.`` in front of every name."""
    source, target = tuned(seed=1), tuned(seed=2)
    compiled: Any = torch.compile(source, backend="eager")
    state = compiled.state_dict()
    assert set(state) == {f"_orig_mod.{n}" for n in source.__dict__["pelt_attachment"].owned}
    other: Any = torch.compile(target, backend="eager")
    other.load_state_dict(copy.deepcopy(state))
    assert torch.equal(logits(target), logits(source))


@pytest.mark.slow
def test_compiled_blocks() -> None:
    """Wrapped inside after attaching, as strategies do block by block."""
    source, target = tuned(seed=1), tuned(seed=2)
    for model in (source, target):
        layers = model.bert.encoder.layer
        for index in range(len(layers)):
            layers[index] = torch.compile(layers[index], backend="eager")
    state = source.state_dict()
    owned = source.__dict__["pelt_attachment"].owned
    assert {plain(name) for name in state} == owned
    assert set(state) != owned
    target.load_state_dict(copy.deepcopy(state))
    assert all(torch.equal(state[name], tensor) for name, tensor in target.state_dict().items())


def test_moving_average() -> None:
    """EMA keeps a deep copy of the model; its checkpoint is as small, and comes back."""
    model = tuned(seed=1)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0 if parameter.requires_grad else 0.0)
    average.update_parameters(model)
    for name, parameter in average.module.named_parameters():
        half = 0.5 if dict(model.named_parameters())[name].requires_grad else 0.0
        torch.testing.assert_close(parameter, first[name] + half)

    owned = model.__dict__["pelt_attachment"].owned
    state = copy.deepcopy(average.state_dict())
    assert set(state) == {"n_averaged"} | {f"module.{name}" for name in owned}
    other = AveragedModel(tuned(seed=2))
    other.load_state_dict(state)
    assert int(other.n_averaged) == 2
    assert torch.equal(logits(other.module), logits(average.module))
    assert not torch.equal(logits(average.module), logits(model))
