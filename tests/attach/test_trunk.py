"""How far a plan reaches down, and which models can start above their first block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, build, inputs

from lightning_pelt import (
    Adapter,
    BitFit,
    FullFineTuning,
    Gate,
    Group,
    HeadOnly,
    LoRA,
    NewTokens,
    Plan,
    Prefix,
    Prompt,
    attach,
    quantise,
)
from lightning_pelt.anatomy.example_rows import example_rows
from lightning_pelt.anatomy.trunk import Trunk
from lightning_pelt.attach import Attachment
from lightning_pelt.attach.trunk import Trial, trunk_fault, try_trunk, untouched_blocks
from lightning_pelt.testing import tiny_bert, tiny_gpt2

BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
}


def upper(*methods: Any, **options: Any) -> Plan:
    return Plan([Group(methods, blocks=[1])], **options)


def tried(attachment: Attachment, batch: dict[str, Tensor] = BATCH, depth: int = 1) -> Trial:
    trunk = Trunk(attachment.model, attachment.anatomy.stacks[0], depth)
    trunk.install()
    rows = example_rows(trunk.base, batch)
    assert rows is not None
    try:
        return try_trunk(attachment, trunk, batch, rows)
    finally:
        trunk.remove()


@pytest.mark.parametrize(
    ("plan", "blocks"),
    [
        (upper(LoRA()), 1),
        (upper(Adapter(), Prefix()), 1),
        (upper(BitFit()), 1),
        (upper(LoRA(gate=Gate())), 1),
        (HeadOnly(), 2),
        (Plan.uniform(LoRA()), 0),
        (Plan([Group([LoRA()], blocks=[0])]), 0),
        (Plan.uniform(Prefix(mlp=None)), 0),
        (upper(LoRA(), norms=True), 0),
        (FullFineTuning(), 0),
    ],
    ids=repr,
)
def test_untouched_blocks(plan: Plan, blocks: int) -> None:
    assert untouched_blocks(attach(tiny_bert(), plan)) == blocks


def test_closed_gates_and_held_weights_extend_their_blocks() -> None:
    attachment = attach(tiny_bert(), Plan.uniform(LoRA(gate=Gate())))
    for gate in attachment.gates.values():
        gate.layer.open.zero_()
    attachment.model.requires_grad_(False)
    assert untouched_blocks(attachment) == 0


def test_blocks_that_somebody_unfroze() -> None:
    attachment = attach(tiny_bert(), upper(LoRA()))
    attachment.model.bert.encoder.layer[0].output.dense.bias.requires_grad_(True)
    assert untouched_blocks(attachment) == 0


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
@pytest.mark.parametrize(
    "plan", [upper(LoRA()), upper(Adapter(gate=Gate()), Prefix(length=2)), HeadOnly()], ids=repr
)
def test_models_that_can(make: Any, plan: Plan) -> None:
    attachment = attach(make(), plan)
    depth = untouched_blocks(attachment)
    assert trunk_fault(attachment, depth) is None
    found = tried(attachment, depth=depth)
    assert found.fault is None and found.dtype == torch.float32


@pytest.mark.parametrize("norms", [False, True])
def test_a_plan_of_every_block(norms: bool) -> None:
    fault = trunk_fault(attach(tiny_bert(), Plan.uniform(LoRA(), norms=norms)), 0)
    assert fault is not None and "block 0" in fault and "blocks=" in fault


def test_full_fine_tuning() -> None:
    assert "whole base" in str(trunk_fault(attach(tiny_bert(), FullFineTuning()), 0))


@pytest.mark.parametrize(
    "plan",
    [Plan([Group([Prompt(length=2)]), Group([LoRA()], [1])]), Plan([Group([NewTokens(2)])])],
    ids=repr,
)
def test_plans_that_extend_the_embeddings(plan: Plan) -> None:
    attachment = attach(tiny_bert(), plan)
    depth = untouched_blocks(attachment)
    assert depth and "below that block" in str(tried(attachment, depth=depth).fault)


def test_trained_embeddings() -> None:
    attachment = attach(tiny_bert(), upper(LoRA()), head=["classifier", "bert.embeddings"])
    assert "which runs below that block, are trained" in str(tried(attachment).fault)


def test_a_gradient_that_reaches_no_weight() -> None:
    attachment = attach(tiny_bert(), upper(LoRA()))
    assert not tried(attachment).flows
    attachment.model.enable_input_require_grads()
    found = tried(attachment)
    assert found.fault is None and found.flows


def test_a_gradient_to_a_weight_that_is_no_part() -> None:
    attachment = attach(tiny_bert(), upper(LoRA()))
    weight = nn.Parameter(torch.zeros(()))
    words = attachment.model.bert.embeddings.word_embeddings
    words.register_forward_hook(lambda module, args, output: output + weight)
    assert "flows to weights below" in str(tried(attachment).fault)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_models_of_several_stacks(name: str) -> None:
    fault = trunk_fault(attach(build(name), upper(LoRA())), 1)
    assert fault is not None and "several stacks" in fault and "ForConditional" in fault


def test_a_compiled_model() -> None:
    model = tiny_bert()
    attachment = attach(model, upper(LoRA()))
    model.compile(backend="eager")
    assert "compiled" in str(trunk_fault(attachment, 1))


def test_a_quantised_model() -> None:
    pytest.importorskip("torchao")
    other = tiny_bert()
    quantise(other, "int8")
    assert "quantised" in str(trunk_fault(attach(other, upper(LoRA())), 1))


@pytest.mark.parametrize(
    "path", ["bert", "bert.embeddings", "bert.encoder", "bert.encoder.layer.0.output"]
)
def test_a_strangers_hook(path: str) -> None:
    attachment = attach(tiny_bert(), upper(LoRA()))
    attachment.model.get_submodule(path).register_forward_pre_hook(lambda *_: None)
    assert "has a hook of" in str(tried(attachment).fault)


def test_a_strangers_hook_above() -> None:
    attachment = attach(tiny_bert(), upper(LoRA()))
    attachment.model.bert.encoder.layer[1].register_forward_hook(lambda *_: None)
    assert tried(attachment).fault is None


def test_hidden_states_that_were_asked_for_before() -> None:
    """transformers leaves its hooks in the model."""
    attachment = attach(tiny_bert(), upper(LoRA()))
    attachment.model(**BATCH, output_hidden_states=True, output_attentions=True)
    assert untouched_blocks(attachment) == 1 and tried(attachment).fault is None


class Mean(nn.Module):
    """Adds the mean over the rows of a batch, as no transformer does."""

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) + x.mean(0, keepdim=True)


def test_rows_that_depend_on_each_other() -> None:
    attachment = attach(tiny_bert(), upper(LoRA()))
    block = attachment.model.bert.encoder.layer[0]
    block.intermediate.dense = nn.Sequential(block.intermediate.dense)
    block.attention.output.dense = Mean(block.attention.output.dense)
    assert "depend on other rows" in str(tried(attachment).fault)


class Peeking(nn.Module):
    """A block that also reads what the first block has left on the side."""

    def __init__(self, block: nn.Module, first: nn.Module) -> None:
        super().__init__()
        self.block, self.__dict__["left"] = block, []
        run = first.attention.forward

        def leaving(*args: Any, **kwargs: Any) -> Any:
            output = run(*args, **kwargs)
            self.left[:] = [output[0].mean()]
            return output

        first.attention.forward = leaving

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        extra = self.left.pop() if self.left else 0.0
        return self.block(hidden, *args, **kwargs) + extra


def test_upper_blocks_that_read_more_than_hidden_states() -> None:
    attachment = attach(tiny_bert(), upper(LoRA()))
    layers = attachment.model.bert.encoder.layer
    layers[1] = Peeking(layers[1], layers[0])
    assert "read more than the hidden states" in str(tried(attachment).fault)


def test_a_trial_leaves_the_model_as_it_was() -> None:
    attachment = attach(tiny_bert(), upper(Adapter(gate=Gate())))
    attachment.train()
    attachment.model(**BATCH)
    seen = {name: gate.layer.last for name, gate in attachment.gates.items()}
    modes = [module.training for module in attachment.model.modules()]
    state = torch.get_rng_state()
    assert tried(attachment).fault is None
    assert [module.training for module in attachment.model.modules()] == modes
    assert all(gate.layer.last is seen[name] for name, gate in attachment.gates.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_of_sounds() -> None:
    attachment = attach(build("wav2vec2"), upper(LoRA()))
    assert "not one for each token" in str(tried(attachment, inputs("wav2vec2")).fault)


WORDS_AND_IMAGES = [n for n, e in ZOO.items() if e.kind in ("encoder", "decoder", "vision")]


@pytest.mark.slow
@pytest.mark.sample(4)
@pytest.mark.parametrize("name", [n for n in WORDS_AND_IMAGES if n != "albert"])
def test_families(name: str) -> None:
    attachment = attach(build(name), upper(LoRA()))
    assert trunk_fault(attachment, untouched_blocks(attachment)) is None
    assert tried(attachment, inputs(name)).fault is None


def test_blocks_that_share_their_weights() -> None:
    attachment = attach(build("albert"), Plan.uniform(LoRA()))
    assert "block 0" in str(trunk_fault(attachment, untouched_blocks(attachment)))
