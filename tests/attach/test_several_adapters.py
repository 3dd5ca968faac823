"""Several named adapters on one model: each is what it would be alone."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from zoo import build, inputs, output

from lightning_pelt import (
    IA3,
    Adapter,
    BitFit,
    Compacter,
    Gate,
    LoRA,
    Plan,
    Prefix,
    Prompt,
    UniPELT,
    attach,
    detach,
    load_adapters,
    merge,
    save_adapters,
)
from lightning_pelt.attach import find_attachment
from lightning_pelt.attach.several import Adapters
from lightning_pelt.plans.papers import FullFineTuning, HeadOnly
from lightning_pelt.testing import awaken, hook_counts

ANN, BOB = Plan.uniform(LoRA(r=2, gate=Gate())), Plan.uniform(Adapter(bottleneck=4), norms=True)


@torch.no_grad()
def run(model: nn.Module, name: str = "bert") -> Tensor:
    return output(model, inputs(name))


@torch.no_grad()
def trained(attachment, seed: int) -> None:
    """Every submodule has an effect, and the head another one than before."""
    awaken(attachment, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in attachment.parameter_groups().get("head", ()):
        parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.1)


def alone(name: str, plan: Plan, seed: int) -> Tensor:
    """The output of a model with this plan and no other."""
    model = build(name)
    trained(attach(model, plan, seed=seed), seed)
    return run(model.eval(), name)


def several(name: str = "bert", plans: tuple[Plan, ...] = (ANN, BOB)) -> Adapters:
    """Adapters ``a0``, ``a1``, ..., the last one active."""
    adapters = Adapters(build(name))
    for number, plan in enumerate(plans):
        trained(adapters.add(f"a{number}", plan, seed=number), number)
    adapters.model.eval()
    return adapters


METHODS = [LoRA(gate=Gate()), Adapter(), Prefix(length=2), BitFit(), IA3(), Compacter()]


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "albert", "deberta", "vit", "whisper"])
@pytest.mark.slow
def test_each_computes_what_it_computes_alone(name):
    plans = tuple(Plan.uniform(method) for method in METHODS[:2])
    bare, expected = run(build(name), name), [alone(name, p, i) for i, p in enumerate(plans)]
    assert not torch.equal(*expected)
    adapters = several(name, plans)
    for number in (1, 0, 1, 0):
        adapters.activate(f"a{number}")
        assert torch.equal(run(adapters.model, name), expected[number])
    adapters.deactivate()
    assert torch.equal(run(adapters.model, name), bare)


@pytest.mark.parametrize("method", [*METHODS, Prompt(length=2)], ids=lambda m: m.name)
def test_every_method_can_be_parked(method):
    plan = Plan.uniform(method)
    adapters = several(plans=(plan, plan))
    adapters.activate("a0")
    assert torch.equal(run(adapters.model), alone("bert", plan, 0))
    adapters.activate("a1")
    assert torch.equal(run(adapters.model), alone("bert", plan, 1))


@pytest.mark.slow
def test_the_model_is_as_before_the_first_after_the_last():
    model, fresh = build("bert"), build("bert")
    next(model.parameters()).requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    adapters = Adapters(model)
    for number, plan in enumerate((ANN, BOB, UniPELT(), HeadOnly())):
        trained(adapters.add(f"a{number}", plan), number)
    for name in adapters.names:
        adapters.delete(name)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert all(torch.equal(t, fresh.state_dict()[n]) for n, t in model.state_dict().items())
    assert hook_counts(model) == hook_counts(fresh)
    assert vars(model).keys() == vars(fresh).keys()
    assert not adapters.names and find_attachment(model) is None


def test_a_parked_adapter_leaves_nothing_on_the_model():
    adapters, fresh = several(), build("bert")
    adapters.deactivate()
    model = adapters.model
    assert [name for name, _ in model.named_parameters()] == [
        n for n, _ in fresh.named_parameters()
    ]
    assert model.state_dict().keys() == fresh.state_dict().keys()
    assert hook_counts(model) == hook_counts(fresh)
    assert not any(p.requires_grad for n, p in model.named_parameters() if "classifier" not in n)


def test_names_and_parameters_are_those_of_the_active_one():
    adapters = several()
    adapters.activate("a0")
    alone = build("bert")
    attachment = attach(alone, ANN)
    names = [n for n, p in adapters.model.named_parameters() if p.requires_grad]
    assert names == [n for n, p in alone.named_parameters() if p.requires_grad]
    with pytest.warns(UserWarning, match="alone, and not a1"):
        assert adapters.model.state_dict().keys() == alone.state_dict().keys()
    assert find_attachment(adapters.model) is adapters["a0"]
    assert adapters["a0"].parameter_groups().keys() == attachment.parameter_groups().keys()


def test_training_one_changes_no_other():
    adapters = several()
    expected = run(adapters.model)
    adapters.activate("a0")
    before = run(adapters.model)
    optimizer = torch.optim.SGD([p for p in adapters.model.parameters() if p.requires_grad], lr=0.1)
    output(adapters.model, inputs("bert")).square().sum().backward()
    optimizer.step()
    after = run(adapters.model)
    assert not torch.equal(before, after)
    adapters.activate("a1")
    assert torch.equal(run(adapters.model), expected)
    adapters.activate("a0")
    assert torch.equal(run(adapters.model), after)


def test_switching_copies_no_tensor():
    adapters = several()
    own = {id(p) for p in adapters.model.parameters() if p.requires_grad}
    adapters.activate("a0")
    assert own.isdisjoint({id(p) for p in adapters.model.parameters() if p.requires_grad})
    adapters.activate("a1")
    assert own == {id(p) for p in adapters.model.parameters() if p.requires_grad}


@pytest.mark.slow
def test_a_file_does_not_know_that_it_was_one_of_several(tmp_path):
    adapters = several()
    expected = run(adapters.model)
    adapters.activate("a0")
    adapters.save("a1", tmp_path / "a1")
    assert adapters.active == "a0"
    model = build("bert")
    load_adapters(model, tmp_path / "a1")
    assert torch.equal(run(model), expected)
    single = build("bert")
    trained(attach(single, BOB, seed=1), 1)
    save_adapters(single, tmp_path / "single")
    again = Adapters(build("bert"))
    again.load("x", tmp_path / "single")
    again.load("y", tmp_path / "a1")
    for name in ("x", "y"):
        again.activate(name)
        assert torch.equal(run(again.model), expected)


@pytest.mark.slow
def test_a_damaged_file_leaves_everything_as_it_was(tmp_path):
    adapters = several()
    expected = run(adapters.model)
    file = adapters.save("a0", tmp_path) / "adapters.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"damaged|differ"):
        adapters.load("broken", tmp_path)
    assert adapters.names == ["a0", "a1"] and adapters.active == "a1"
    assert torch.equal(run(adapters.model), expected)


@pytest.mark.slow
def test_heads_of_other_label_counts(tmp_path):
    adapters = several()
    expected = run(adapters.model)
    trained(adapters.add("five", ANN, labels=["a", "b", "c", "d", "e"]), 7)
    five = run(adapters.model)
    assert five.shape[-1] == 5 and adapters.model.config.num_labels == 5
    adapters.save("five", tmp_path)
    adapters.activate("a1")
    assert torch.equal(run(adapters.model), expected)
    assert adapters.model.config.num_labels == 3 == adapters.model.num_labels
    adapters.load("again", tmp_path)
    assert torch.equal(run(adapters.model), five)
    assert adapters.model.config.id2label[4] == "e"
    loss = adapters.model(**inputs("bert"), labels=torch.tensor([4, 0])[: len(five)]).loss
    assert loss.isfinite()
    with pytest.raises(ValueError, match="number of at least 1"):
        adapters.add("none", ANN, labels=0)
    assert adapters.active == "again"


def test_labels_of_a_model_without_a_head_for_them():
    adapters = Adapters(build("gpt2"))
    with pytest.raises(ValueError, match="no head whose size depends on its labels"):
        adapters.add("ann", ANN, labels=5)
    assert not adapters.names and adapters.model.config.num_labels == 2


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_hold_all_adapters(how):
    adapters = several()
    expected = {}
    for name in adapters:
        adapters.activate(name)
        expected[name] = run(adapters.model)
    other = Adapters(how(adapters.model))
    assert other.names == adapters.names and other.active == adapters.active
    for name in reversed(other.names):
        other.activate(name)
        assert torch.equal(run(other.model), expected[name])
        with torch.no_grad():
            for parameter in other.model.parameters():
                parameter.mul_(0.5 if parameter.requires_grad else 1)
    for name in adapters:
        adapters.activate(name)
        assert torch.equal(run(adapters.model), expected[name])


@pytest.mark.parametrize("active", ["a0", "a1", None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parked_adapters_follow_the_model_to_another_dtype(dtype, active):
    adapters = several()
    with adapters.using(active):
        adapters.model.to(dtype)
    for name in ("a0", None, "a1"):
        with adapters.using(name):
            assert {p.dtype for p in adapters.model.parameters()} == {dtype}
            assert run(adapters.model).dtype == dtype


def test_parked_adapters_follow_the_model_to_another_device():
    adapters = several()
    adapters.activate("a0")
    adapters.model.to("meta")  # the one other device that every machine has
    for name in ("a1", None, "a0"):
        with adapters.using(name):
            assert {p.device.type for p in adapters.model.parameters()} == {"meta"}


def test_heads_and_norms_of_a_half_precision_model_are_in_fp32_while_active():
    adapters = Adapters(build("bert").half())
    adapters.add("ann", ANN)
    adapters.add("bob", BOB)
    kinds = {name: p.dtype for name, p in adapters.model.named_parameters()}
    assert kinds["classifier.weight"] == torch.float32
    assert kinds["bert.encoder.layer.0.output.LayerNorm.weight"] == torch.float32
    adapters.activate("ann")
    kinds = {name: p.dtype for name, p in adapters.model.named_parameters()}
    assert kinds["bert.encoder.layer.0.output.LayerNorm.weight"] == torch.float16
    adapters.deactivate()
    assert {p.dtype for p in adapters.model.parameters()} == {torch.float16}
    adapters.activate("bob")
    assert adapters.model.classifier.weight.dtype == torch.float32


def test_parked_adapters_follow_the_mode():
    adapters = Adapters(build("bert"))
    adapters.add("ann", Plan.uniform(LoRA(dropout=0.5)))
    adapters.add("bob", Plan.uniform(LoRA(dropout=0.5)))
    adapters.model.train()
    adapters.activate("ann")
    assert all(module.training for module in adapters["ann"].all_submodules)
    adapters.model.eval()
    adapters.activate("bob")
    assert not any(module.training for module in adapters["bob"].all_submodules)


def test_a_state_dict_tells_once_what_it_leaves_out(tmp_path):
    adapters = several()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapters.save("a0", tmp_path)
    with pytest.warns(UserWarning, match=r"active adapter 'a1' alone, and not a0"):
        adapters.model.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapters.model.state_dict()


def test_a_state_dict_of_another_adapter_is_loaded_with_a_warning():
    adapters = several(plans=(ANN, ANN))
    adapters.activate("a0")
    with pytest.warns(UserWarning, match="alone"):
        state = adapters.model.state_dict()
    expected = run(adapters.model)
    adapters.activate("a1")
    with pytest.warns(UserWarning, match="that of the adapter 'a0'"):
        adapters.model.load_state_dict(state, strict=False)
    assert torch.equal(run(adapters.model), expected)


def test_detach_and_merge_are_refused_while_there_are_others():
    adapters = several(plans=(Plan.uniform(LoRA()), Plan.uniform(LoRA())))
    before = run(adapters.model)
    with pytest.raises(ValueError, match=r"'a1' alone cannot be detached: a0"):
        detach(adapters.model)
    with pytest.raises(ValueError, match=r"'a1' alone cannot be merged: a0"):
        merge(adapters.model)
    assert torch.equal(run(adapters.model), before)
    adapters.delete("a0")
    merge(adapters.model)
    torch.testing.assert_close(run(adapters.model), before, rtol=1e-5, atol=1e-5)
    assert not Adapters(adapters.model).names


def test_the_only_one_can_be_detached():
    adapters = several(plans=(BOB,))
    detach(adapters.model)
    fresh = build("bert")
    own = adapters.model.classifier.state_dict()
    fresh.classifier.load_state_dict(own)  # as after attach, the head stays trained
    assert torch.equal(run(adapters.model), run(fresh))
    assert all(p.requires_grad for p in adapters.model.parameters())
    adapters.add("again", ANN)
    assert adapters.names == ["again"]


def test_an_equal_plan_is_that_of_the_active_one():
    adapters = several()
    assert attach(adapters.model, BOB) is adapters["a1"]
    with pytest.raises(ValueError, match="named adapters"):
        attach(adapters.model, ANN)
    adapters.deactivate()
    with pytest.raises(ValueError, match="none is active"):
        attach(adapters.model, ANN)


@pytest.mark.slow
def test_refusals():
    model = build("bert")
    attach(model, ANN)
    with pytest.raises(ValueError, match="without a name"):
        Adapters(model)
    model = build("bert")
    adapters = Adapters(model)
    attachment = attach(model, ANN)
    with pytest.raises(ValueError, match="without a name"):
        adapters.add("ann", ANN)
    assert find_attachment(model) is attachment
    detach(model)
    adapters = several()
    before = run(adapters.model)
    for call, text in [
        (lambda: adapters.activate("a3"), "did you mean"),
        (lambda: adapters.delete("x"), "unknown adapter 'x'"),
        (lambda: adapters.add("a1", ANN), "already"),
        (lambda: adapters.add("a/b", ANN), "expected letters"),
        (lambda: adapters.add("all", FullFineTuning()), "trains the base"),
        (lambda: adapters.add("bad", Plan.uniform(LoRA(sites=["nothing"]))), "nothing"),
        (lambda: adapters.add("bad", "lora"), "plan"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(ValueError, match=text):
            call()
        assert adapters.active == "a1" and len(adapters) == 2
        assert torch.equal(run(adapters.model), before)


def test_an_unfrozen_base_is_not_shared_silently():
    adapters = several()
    weight = adapters.model.bert.encoder.layer[0].attention.self.query.weight
    weight.requires_grad_(True)
    with pytest.raises(ValueError, match="a tensor of the base, which all adapters share"):
        adapters.activate("a0")
    assert adapters.active == "a1"
    weight.requires_grad_(False)
    adapters.activate("a0")


def test_a_file_with_tensors_of_the_base_changes_it_for_its_adapter_alone(tmp_path):
    model = build("bert")
    attachment = attach(model, ANN)
    trained(attachment, 3)
    query = model.bert.encoder.layer[0].attention.self.query.weight
    query.requires_grad_(True)
    with torch.no_grad():
        query.add_(0.3)
    expected = run(model.eval())
    save_adapters(model, tmp_path)
    adapters = several()
    before = run(adapters.model)
    with pytest.warns(UserWarning, match="trained parts of the base"):
        adapters.load("base", tmp_path)
    torch.testing.assert_close(run(adapters.model), expected)
    adapters.activate("a1")
    assert torch.equal(run(adapters.model), before)
    adapters.activate("base")
    torch.testing.assert_close(run(adapters.model), expected)


def test_hooks_of_others_keep_their_place():
    adapters = several()
    seen: list[Tensor] = []
    query = adapters.model.bert.encoder.layer[0].attention.self.query
    adapters.activate("a0")
    query.register_forward_hook(lambda module, args, out: seen.append(out))
    run(adapters.model)
    adapters.activate("a1")
    adapters.activate("a0")
    run(adapters.model)
    assert torch.equal(*seen)  # after the adapter's own hook, both times


@pytest.mark.slow
def test_threads_that_use_adapters_wait_for_each_other():
    adapters = several()
    expected = {}
    for name in adapters:
        with adapters.using(name):
            expected[name] = run(adapters.model)
    wrong: list[str] = []

    def serve(name: str) -> None:
        for _ in range(20):
            with adapters.using(name):
                if not torch.equal(run(adapters.model), expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=serve, args=(name,)) for name in adapters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and adapters.active == "a1"


def test_two_objects_of_one_model_are_one_set():
    adapters = several()
    other = Adapters(adapters.model)
    other.activate("a0")
    assert adapters.active == "a0"
    for name in other.names:
        other.delete(name)
    assert adapters.names == [] and adapters.active is None
    adapters.add("new", ANN)
    assert "new" in Adapters(adapters.model)


@pytest.fixture(autouse=True)
def _errors() -> Iterator[None]:
    """Warnings that a test does not expect are errors, those of other libraries aside."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"lightning_pelt")
        yield
