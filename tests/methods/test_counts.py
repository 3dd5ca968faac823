"""Numbers of parameters: those of the paper and of adapter-hub, digit by digit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.initialization import no_init_weights

from lightning_pelt import (
    IA3,
    Adapter,
    BitFit,
    Compacter,
    FullFineTuning,
    Gate,
    Group,
    HeadOnly,
    LoRA,
    LowRankAdapter,
    Plan,
    Prefix,
    Prompt,
    UniPELT,
    attach,
    detach,
)
from lightning_pelt.testing import tiny_bert

BACKBONE = 109_482_240  # of BERT-base, its head excluded


def filled(cls: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model with cheap random weights: only their numbers are counted."""
    with no_init_weights():
        model = cls(config)
    model.tie_weights()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.uniform_(-0.02, 0.02, generator=generator)
            else:
                parameter.fill_(0.5)
    return model.eval()


@pytest.fixture(scope="module")
def bert() -> PreTrainedModel:
    """BERT-base with two classes. Every test takes its plan off again."""
    return filled(BertForSequenceClassification, BertConfig())


@pytest.fixture(scope="module")
def bart() -> PreTrainedModel:
    """BART-large in width and depth; vocabulary and feed-forward count nowhere and are small."""
    config = BartConfig(vocab_size=100, encoder_ffn_dim=64, decoder_ffn_dim=64)
    return filled(BartForConditionalGeneration, config)


@pytest.fixture(scope="module")
def t5() -> PreTrainedModel:
    """T5-base, its embeddings cut to the 32,100 pieces of the tokenizer."""
    sizes = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    return filled(T5ForConditionalGeneration, T5Config(vocab_size=32_100, **sizes))


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


@pytest.mark.slow
@pytest.mark.parametrize("name", SINGLE)
def test_single_methods_on_bert_base(bert: PreTrainedModel, name: str) -> None:
    method, trained, deployed = SINGLE[name]
    counts, everything, head = count(bert, Plan.uniform(method))
    counted = counts[method.name]
    assert (counted.trained, counted.deployed, counted.gates) == (trained, deployed, 0)
    assert head == 2 * 768 + 2
    assert everything == trained + head


@pytest.mark.slow
def test_bitfit_and_the_bias_of_the_head_make_the_papers_count(bert: PreTrainedModel) -> None:
    counts, _, _ = count(bert, Plan.uniform(BitFit()))
    assert counts["bitfit"].trained + 2 == 102_914


AP, APL = UniPELT([Adapter(), Prefix()]), UniPELT()


@pytest.mark.parametrize(
    ("plan", "deployed", "with_gates", "trained"),
    [(AP, 1_078_848, 1_097_304, 10_771_546), (APL, 1_373_760, 1_410_672, 11_084_914)],
    ids=["AP", "APL"],
)
@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_unipelt_ap_on_bart_large(bart: PreTrainedModel) -> None:
    assert count(bart, AP)[1] == 42_660_924


@pytest.mark.slow
def test_backbone_and_head(bert: PreTrainedModel) -> None:
    attachment = attach(bert, HeadOnly())
    assert (attachment.backbone_size, attachment.head_size) == (BACKBONE, 1_538)
    attachment.detach()


@pytest.mark.parametrize(
    ("plan", "trained"), [(HeadOnly(), 1_538), (FullFineTuning(), BACKBONE + 1_538)]
)
@pytest.mark.slow
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


BOTH: dict[str, Any] = {"sites": ("attention", "ffn"), "reduction_factor": 32}
PHM = Compacter(n=12, share_rule=False, factorized=False)
# Plans and trained parameters of the Compacter paper on T5-base, 62 norms of 47,616 included.
COMPACTER_PAPER = {
    "adapter": (Plan.uniform(Adapter(**BOTH), norms=True), 1_855_104),
    "pfeiffer": (Plan.uniform(Adapter(**BOTH | {"sites": ("attention",)}), norms=True), 951_360),
    "adapterdrop": (Plan([Group([Adapter(**BOTH)], blocks="5-11")], norms=True), 1_101_984),
    "low rank": (Plan.uniform(LowRankAdapter()), 161_664),
    "phm": (Plan.uniform(PHM), 398_976),
    "compacter": (Plan.uniform(Compacter()), 161_728),
    "compacter, d=48": (Plan.uniform(Compacter(bottleneck=48)), 165_184),
    "compacter, d=96": (Plan.uniform(Compacter(bottleneck=96)), 172_096),
    "compacter++": (Plan.uniform(Compacter(sites="compacter++")), 104_704),
    "prompt": (Plan.uniform(Prompt()), 76_800),
    # Without the bias of 32,100 on the tied vocabulary projection, which is no site: 280,932.
    "bitfit": (Plan([Group([BitFit()], blocks="0-11")]), 280_932 - 32_100),
}


QUICK = ("compacter",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in COMPACTER_PAPER],
)
def test_compacter_paper_on_t5_base(t5: PreTrainedModel, name: str) -> None:
    plan, trained = COMPACTER_PAPER[name]
    counts, everything, head = count(t5, plan)
    assert (everything, head) == (trained, 0)
    assert sum(counted.trained for counted in counts.values()) == trained
    if plan.norms:
        assert counts["norm"].trained == 47_616
    assert attach(t5, HeadOnly()).backbone_size == 222_882_048
    detach(t5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "share"),
    [(8, 0.0728), (12, 0.0733)],
)
def test_compacter_shares(t5: PreTrainedModel, n: int, share: float) -> None:
    """In percent of the model, as the specification tabulates them."""
    _, everything, _ = count(t5, Plan.uniform(Compacter(n=n)))
    assert round(100 * everything / 222_882_048, 4) == share
