"""Numbers of parameters: those of the paper and of adapter-hub, digit by digit."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
)

from lightning_pelt import (
    IA3,
    Adapter,
    BitFit,
    FullFineTuning,
    Gate,
    Group,
    HeadOnly,
    LoRA,
    Plan,
    Prefix,
    UniPELT,
    attach,
)
from lightning_pelt.testing import tiny_bert

BACKBONE = 109_482_240  # of BERT-base, its head excluded


@pytest.fixture(scope="module")
def bert() -> PreTrainedModel:
    """BERT-base with two classes. Every test takes its plan off again."""
    return BertForSequenceClassification(BertConfig())


@pytest.fixture(scope="module")
def bart() -> PreTrainedModel:
    """BART-large in width and depth; vocabulary and feed-forward count nowhere and are small."""
    return BartForConditionalGeneration(
        BartConfig(vocab_size=100, encoder_ffn_dim=64, decoder_ffn_dim=64)
    )


def count(model: PreTrainedModel, plan: Plan) -> tuple[dict[str, Any], int, int]:
    """Counts by method, number of trained parameters, and number of those of the head."""
    attachment = attach(model, plan)
    try:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return dict(attachment.counts), trained, attachment.head_size
    finally:
        attachment.detach()


SINGLE = {
    "bitfit": (BitFit(), 102_912, 102_912),
    "prefix": (Prefix(), 9_857_024, 184_320),
    "flat prefix": (Prefix(mlp=None), 184_320, 184_320),
    "lora": (LoRA(), 294_912, 294_912),
    "adapter": (Adapter(), 894_528, 894_528),
    "ia3": (IA3(), 55_296, 55_296),
}


@pytest.mark.parametrize("name", SINGLE)
def test_single_methods_on_bert_base(bert: PreTrainedModel, name: str) -> None:
    method, trained, deployed = SINGLE[name]
    counts, everything, head = count(bert, Plan.uniform(method))
    counted = counts[method.name]
    assert (counted.trained, counted.deployed, counted.gates) == (trained, deployed, 0)
    assert head == 2 * 768 + 2
    assert everything == trained + head


def test_bitfit_and_the_bias_of_the_head_make_the_papers_count(bert: PreTrainedModel) -> None:
    counts, _, _ = count(bert, Plan.uniform(BitFit()))
    assert counts["bitfit"].trained + 2 == 102_914


AP, APL = UniPELT([Adapter(), Prefix()]), UniPELT()


@pytest.mark.parametrize(
    ("plan", "deployed", "with_gates", "trained"),
    [(AP, 1_078_848, 1_097_304, 10_771_546), (APL, 1_373_760, 1_410_672, 11_084_914)],
    ids=["AP", "APL"],
)
def test_unipelt_on_bert_base(
    bert: PreTrainedModel, plan: Plan, deployed: int, with_gates: int, trained: int
) -> None:
    counts, everything, _ = count(bert, plan)
    gates = {name: counted.gates for name, counted in counts.items()}
    kinds = {"adapter": 9_228, "prefix": 9_228, "lora": 18_456}
    assert gates == {name: kinds[name] for name in counts}
    assert sum(counted.deployed for counted in counts.values()) == deployed
    assert deployed + sum(gates.values()) == with_gates
    assert everything == trained


def test_unipelt_on_bart_large(bart: PreTrainedModel) -> None:
    """36 attentions, 24 feed-forwards, three tables with an MLP each; a frozen vocabulary."""
    counts, everything, head = count(bart, UniPELT())
    found = {name: (c.trained, c.deployed, c.gates) for name, c in counts.items()}
    assert found == {
        "adapter": (3_171_840, 3_171_840, 24_600),
        "prefix": (39_427_584, 737_280, 36_900),  # folded: 36 x 2 x 10 x 1,024
        "lora": (1_179_648, 1_179_648, 73_800),
    }
    assert (everything, head) == (43_914_372, 0)


def test_unipelt_ap_on_bart_large(bart: PreTrainedModel) -> None:
    assert count(bart, AP)[1] == 42_660_924


def test_backbone_and_head(bert: PreTrainedModel) -> None:
    attachment = attach(bert, HeadOnly())
    assert (attachment.backbone_size, attachment.head_size) == (BACKBONE, 1_538)
    attachment.detach()


@pytest.mark.parametrize(
    ("plan", "trained"), [(HeadOnly(), 1_538), (FullFineTuning(), BACKBONE + 1_538)]
)
def test_baselines(bert: PreTrainedModel, plan: Plan, trained: int) -> None:
    counts, everything, _ = count(bert, plan)
    assert counts == {}
    assert everything == trained


def test_a_method_in_two_groups_is_counted_once() -> None:
    """The same name in different blocks: one entry, the sum of both."""
    plan = Plan([Group([LoRA(r=2)], blocks=[0]), Group([LoRA(r=4, gate=Gate())], blocks=[1])])
    counts, _, _ = count(tiny_bert(), plan)
    (lora,) = counts.values()
    assert lora.trained == lora.deployed == 2 * 2 * 32 * (2 + 4)
    assert lora.gates == 2 * 33


@pytest.mark.parametrize("split", [False, True])
def test_prefixes_in_two_groups(split: bool) -> None:
    """Each group has a table and an MLP of its own, and what remains of both is the same."""
    method = Prefix(length=3, mlp=16)
    halves = [Group([method], blocks=[0]), Group([method], blocks=[1])]
    counts, _, _ = count(tiny_bert(), Plan(halves if split else [Group([method])]))
    shared = 3 * 32 + 33 * 16
    outputs = 17 * 2 * 32 * 2
    assert counts["prefix"].trained == (2 if split else 1) * shared + outputs
    assert counts["prefix"].deployed == 3 * 2 * 32 * 2


@pytest.mark.parametrize(
    ("gate", "total"),
    [(Gate(), 4 * 33), (Gate(shared=True), 2 * 33), (Gate(learned=False), 0)],
)
def test_gates_are_counted_apart(gate: Gate, total: int) -> None:
    counts, _, _ = count(tiny_bert(), Plan.uniform(LoRA(r=2, gate=gate)))
    assert counts["lora"].gates == total
    assert counts["lora"].trained == 4 * 2 * 64
