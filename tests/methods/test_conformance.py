"""Every plan on every family: sites found, closed is the base, gradients everywhere, detachable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from zoo import ZOO, build, inputs, output

from lightning_pelt import (
    IA3,
    XPEFT,
    Adapter,
    BitFit,
    Compacter,
    Gate,
    LoRA,
    Plan,
    Prefix,
    RandomBank,
    UniPELT,
    attach,
)
from lightning_pelt.attach import Attachment
from lightning_pelt.testing import awaken, hook_counts, is_ours

FAMILIES = list(ZOO)
Prefixes = list[Prefix]

BANK = RandomBank(size=12)

# Bottlenecks of half the width: of two units, rectified, one is easily dead.
PLANS: dict[str, Callable[[Prefixes], Plan]] = {
    "unipelt": lambda prefix: UniPELT([Adapter(reduction_factor=2), *prefix, LoRA()]),
    "everywhere": lambda prefix: Plan.uniform(
        Adapter(reduction_factor=2, sites=("attention", "ffn"), placement="parallel", gate=Gate()),
        LoRA(sites=("*attention.*",), gate=Gate(shared=True)),
    ),
    "bitfit": lambda prefix: Plan.uniform(BitFit(gate=Gate())),
    "ia3": lambda prefix: Plan.uniform(IA3(gate=Gate())),
    "compacter": lambda prefix: UniPELT([Compacter(bottleneck=8, rule_std=0.3)]),
    "xpeft": lambda prefix: UniPELT([XPEFT(bank=BANK, k=4, scale=30.0, bottleneck=8)]),
}


def plan_for(name: str, kind: str) -> Plan:
    return PLANS[kind]([Prefix(length=4)] if ZOO[name].interface else [])


def everything(model: PreTrainedModel) -> tuple[object, ...]:
    """Names, freezing, hooks and attributes of a model."""
    return (
        list(model.state_dict()),
        {name: p.requires_grad for name, p in model.named_parameters()},
        hook_counts(model),
        {path: set(vars(module)) for path, module in model.named_modules()},
    )


def run(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():  # one grad mode: another may mean another kernel
        return output(model, batch)


def check_sites(attachment: Attachment) -> None:
    anatomy = attachment.anatomy
    for method in attachment.plan.methods:
        gated = {view.block for view in attachment.gates.values() if view.method == method.name}
        blocks = {anatomy.block_label(site) for site in anatomy.sites if site.block is not None}
        assert gated - {"outer"} == blocks, f"{method.name} reaches every block"


def check_gradients(attachment: Attachment, batch: dict[str, Tensor]) -> None:
    model = attachment.model
    # Squared, for the sum of a normalised embedding has no gradient.
    output(model, batch).square().sum().backward()
    trained = {name: p for name, p in model.named_parameters() if name in attachment.owned}
    without = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    assert trained
    assert without == []
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trained)


@pytest.mark.sample(7)
@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, kind: str) -> None:
    model, batch = build(name), inputs(name)
    base = run(model, batch)
    before = everything(model)  # transformers adds hooks of its own in the first forward of some
    names = [n for n, _ in model.named_parameters()]

    attachment = attach(model, plan_for(name, kind))
    check_sites(attachment)
    assert [n for n, _ in model.named_parameters() if not is_ours(n)] == names
    awaken(attachment)
    assert (run(model, batch) - base).abs().max() > 1e-3, "open gates let something through"
    check_gradients(attachment, batch)
    for gate in attachment.gates.values():
        gate.set_open(0.0)
    assert torch.equal(run(model, batch), base)
    attachment.detach()
    assert everything(model) == before
    assert torch.equal(run(model, batch), base)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "bart", "vit"])
def test_closed_with_gradients(name: str) -> None:
    """In training too: closed submodules stay in the graph, with gradients of zero."""
    model, batch = build(name), inputs(name)
    model.requires_grad_(False)
    base = output(model, batch)
    attachment = attach(model, plan_for(name, "unipelt"), head=[])
    awaken(attachment)
    for gate in attachment.gates.values():
        gate.set_open(0.0)
    closed = output(model, batch)
    torch.testing.assert_close(closed, base, rtol=0, atol=1e-5)
    closed.square().sum().backward()
    for group in attachment.parameter_groups().values():
        for parameter in group:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
    for method in ("adapter", "prefix", "lora"):
        weights = attachment.parameter_groups()[method]
        assert not any(weight.grad.any() for weight in weights if weight.grad is not None)


def test_the_default_plan_names_what_a_family_can_do() -> None:
    model = build("deberta-v2")
    with pytest.raises(ValueError, match=r"UniPELT\(methods=\[LoRA\(\), Adapter\(\)\]\)"):
        attach(model, UniPELT())
    attach(model, UniPELT(methods=[LoRA(), Adapter()]))


def test_the_zoo_is_large_enough() -> None:
    assert len({ZOO[name].config().model_type for name in FAMILIES}) >= 30
