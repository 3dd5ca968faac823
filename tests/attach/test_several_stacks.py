"""Stacks of adapters, against forwards by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from zoo import build, inputs, output

from lightning_pelt import Adapter, Gate, LoRA, Plan, Prefix, load_adapters, merge
from lightning_pelt.attach.several import Adapters
from lightning_pelt.plans import Group
from lightning_pelt.testing import awaken

LORA, OTHER = Plan.uniform(LoRA(r=2)), Plan.uniform(LoRA(r=3, gate=Gate()))
NET = Plan.uniform(Adapter(bottleneck=4, placement="sequential"))
SUBLAYER = "bert.encoder.layer.0.output.dense"


@torch.no_grad()
def several(first: Plan, second: Plan, name: str = "bert") -> Adapters:
    adapters = Adapters(build(name))
    for number, plan in enumerate((first, second)):
        attachment = adapters.add(("ann", "bob")[number], plan, seed=number)
        awaken(attachment, seed=number, std=0.3)
        draw = torch.Generator().manual_seed(number)
        for parameter in attachment.parameter_groups().get("head", ()):
            parameter.add_(torch.randn(parameter.shape, generator=draw))
    adapters.model.eval()
    return adapters


@torch.no_grad()
def run(adapters: Adapters, name: str = "bert") -> Tensor:
    return output(adapters.model, inputs(name))


def test_loras_add_up():
    adapters = several(LORA, LORA)
    adapters.stack("ann", "bob")
    found = run(adapters)
    model = build("bert")
    for name in ("ann", "bob"):
        with adapters.using(name), torch.no_grad():
            for update in (u for m in adapters[name].all_submodules for u in m.weight_updates()):
                model.get_submodule(update.path).weight.add_(update.delta)
            model.classifier.load_state_dict(adapters.model.classifier.state_dict())
    torch.testing.assert_close(found, output(model, inputs("bert")), rtol=1e-5, atol=1e-5)


def test_networks_run_one_after_the_other():
    adapters = several(NET, NET)
    nets = []
    for name in ("ann", "bob"):
        with adapters.using(name):
            host = adapters.model.get_submodule(adapters[name].all_submodules[0].host)
            nets.append(host.pelt["adapter_ffn"].net)
    x = torch.randn(1, 2, adapters["bob"].all_submodules[0].net.up.shape[0])

    def through(net, f: Tensor) -> Tensor:
        return f + torch.relu(f @ net.down.T + net.down_bias) @ net.up.T + net.up_bias

    for order in (("ann", "bob"), ("bob", "ann")):
        adapters.stack(*order)
        ours = [m for m in adapters["+".join(order)].all_submodules if "layer.0." in m.host]
        f = x
        for module in ours:
            f = module(f, f)
        one, two = nets if order[0] == "ann" else nets[::-1]
        torch.testing.assert_close(f, through(two, through(one, x)))
    adapters.activate("ann+bob")
    one = run(adapters)
    adapters.activate("bob+ann")
    assert not torch.allclose(one, run(adapters), atol=1e-3)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_both_act_with_the_head_of_the_last(name):
    """The hooks and the children of both on one model, put there by hand."""
    adapters = several(OTHER, NET, name)
    adapters.stack("ann", "bob")
    found = run(adapters, name)
    adapters.deactivate()
    ann, bob = (adapters._kept.entry(each) for each in ("ann", "bob"))
    children = [change for change in ann.changes if change.table == "_modules"]
    for change in ann.changes:
        change.put_on()
    for change in children:
        del change.module._modules[change.key]  # their hooks do not need them
    for change in bob.changes:
        change.put_on()
    torch.testing.assert_close(run(adapters, name), found, rtol=1e-5, atol=1e-5)


def test_a_stack_uses_the_weights_of_its_adapters():
    adapters = several(OTHER, NET)
    attachment = adapters.stack("ann", "bob")
    theirs = {id(p) for n in ("ann", "bob") for p in adapters[n].parameters_of("lora")}
    theirs |= {id(p) for p in adapters["bob"].parameters_of("adapter")}
    assert {id(p) for m in attachment.submodules for p in attachment.parameters_of(m)} == theirs
    before = run(adapters)
    awaken(adapters["ann"], seed=5)
    assert not torch.equal(run(adapters), before)
    own = Adapter(bottleneck=4, placement="sequential", name="bob_adapter")
    methods = (LoRA(r=3, gate=Gate(), name="ann_lora"), own)
    assert attachment.plan == Plan([Group([method]) for method in methods], norms=False)
    assert next(iter(attachment.gates)) == "00/ann_lora.query"


@pytest.mark.slow
def test_a_stack_is_an_ordinary_adapter(tmp_path):
    adapters = several(OTHER, NET)
    adapters.stack("ann", "bob", name="both")
    expected = run(adapters)
    adapters.save("both", tmp_path)
    model = build("bert")
    load_adapters(model, tmp_path)
    assert torch.equal(output(model, inputs("bert")), expected)
    adapters.delete("ann")
    adapters.delete("bob")
    assert torch.equal(run(adapters), expected)
    adapters.model.double()
    adapters.add("third", LORA)
    adapters.activate("both")
    torch.testing.assert_close(run(adapters).float(), expected, rtol=1e-4, atol=1e-4)


def test_a_stack_of_loras_can_be_merged():
    adapters = several(LORA, LORA)
    adapters.stack("ann", "bob")
    expected = run(adapters)
    adapters.delete("ann")
    adapters.delete("bob")
    merge(adapters.model)
    torch.testing.assert_close(run(adapters), expected, rtol=1e-5, atol=1e-5)


def test_a_stack_with_norms_and_other_labels():
    adapters = several(Plan.uniform(LoRA(r=2), norms=True), NET)
    with torch.no_grad():
        awaken(adapters.add("five", OTHER, labels=list("abcde"), seed=3), seed=3)
    adapters.stack("ann", "five")
    assert run(adapters).shape[-1] == 5 and adapters.model.config.id2label[4] == "e"
    stacked = adapters.model.bert.encoder.layer[0].output.LayerNorm.weight
    head = adapters.model.classifier.weight
    with adapters.using("ann"):
        assert adapters.model.bert.encoder.layer[0].output.LayerNorm.weight is stacked
    with adapters.using("five"):
        assert adapters.model.classifier.weight is head


def test_refusals():
    prefix = Plan.uniform(Prefix(length=2))
    adapters = several(prefix, prefix)
    adapters.add("norms", Plan.uniform(LoRA(), norms=True))
    adapters.add("again", Plan.uniform(LoRA(), norms=True))
    adapters.activate("bob")
    before = run(adapters)
    for names, text in [
        (("ann", "bob"), "has a prefix already"),
        (("ann",), "expected two or more"),
        (("ann", "ann"), "expected two or more"),
        (("ann", "x"), "unknown adapter 'x'"),
        (("norms", "again"), "both train the norms"),
    ]:
        with pytest.raises(ValueError, match=text):
            adapters.stack(*names)
        assert adapters.active == "bob" and len(adapters) == 4
        assert torch.equal(run(adapters), before)
