"""Parameters by block and method, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from reports.plan_models import small_bert, small_t5
from transformers import T5Config, T5ForConditionalGeneration

from lightning_pelt import (
    IA3,
    S4,
    XPEFT,
    Adapter,
    Attachment,
    BitFit,
    Compacter,
    Gate,
    Group,
    LoRA,
    LowRankAdapter,
    Plan,
    Prefix,
    Prompt,
    RandomBank,
    UniPELT,
    attach,
)
from lightning_pelt.anatomy import examine
from lightning_pelt.methods._stacked_bottlenecks import Shape, StackedBottlenecks
from lightning_pelt.plans.design_space import Block
from lightning_pelt.reports.plan_breakdown import MethodInBlock, break_down

# Sizes and numbers of blocks in the worked case of the specification. The totals per block follow
# from the unit costs: A s(2 d + 1) m + s d, P 2 d l, L 2 * 2 d r per attention, B 6,912 and 9,984.
WORKED = [
    (Plan([Group([Adapter(7, sites=["attention", "ffn"]), LoRA(r=7)], stack="encoder"),
           Group([Adapter(4, sites=["attention", "cross_attention", "ffn"]),
                  Prefix(5, mlp=None), BitFit(sites=("*attention.*", "ffn.*"))],
                 stack="decoder")]),
     {"encoder": (4, {"adapter": ("m=7", 23_054), "lora": ("r=7", 21_504)}),
      "decoder": (8, {"adapter": ("m=4", 20_748), "prefix": ("l=5", 15_360),
                      "bitfit": ("", 9_984)})}),
    (Plan([Group([Adapter(7, sites=["attention", "ffn"]), Prefix(15, mlp=None)], stack="encoder"),
           Group([Prefix(5, mlp=None), BitFit(sites=("*attention.*", "ffn.*")), LoRA(r=3)],
                 stack="decoder")]),
     {"encoder": (8, {"adapter": ("m=7", 23_054), "prefix": ("l=15", 23_040)}),
      "decoder": (4, {"prefix": ("l=5", 15_360), "bitfit": ("", 9_984), "lora": ("r=3", 18_432)})}),
]  # fmt: skip


@pytest.mark.slow
def test_t5_base_has_the_total_of_the_specification() -> None:
    """1,090,824 (section 4.2), counted on submodules in one encoder and one decoder block."""
    config = T5Config(vocab_size=10, d_model=768, d_kv=64, d_ff=3072, num_layers=1, num_heads=12)
    total = 0
    for plan, expected in WORKED:
        found = break_down(attach(T5ForConditionalGeneration(config), plan))
        for row in found.rows:
            blocks, cells = expected[row.block.stack]
            assert row.methods == {name: MethodInBlock(*cell) for name, cell in cells.items()}
            total += blocks * row.total
    assert total == 1_090_824


PLANS: list[Plan] = [
    UniPELT(),
    UniPELT([Adapter(), LoRA()], norms=True),
    Plan.uniform(Compacter(bottleneck=4)),
    Plan.uniform(Compacter(bottleneck=4, share_rule=False)),
    Plan.uniform(LowRankAdapter(bottleneck=3, gate=Gate()), LoRA(gate=Gate())),
    Plan.uniform(Prefix(), IA3()),
    Plan.uniform(Prompt(length=3), BitFit()),
    Plan([Group([LoRA(r=2)], "0"), Group([LoRA(r=5), Adapter(3)], [-1])]),
    Plan.uniform(LoRA(name="wide", r=9), LoRA(name="thin", r=1, gate=Gate(shared=True))),
]
PROFILES = Plan.uniform(
    XPEFT(RandomBank(size=6), k=2, profiles=3, norm="profile", head="profile", bottleneck=4)
)


@pytest.mark.parametrize(
    ("model", "plan"),
    # T5 has no head, and profiles need one for their own heads.
    [*product([small_bert, small_t5], PLANS), (small_bert, PROFILES)],
    ids=lambda value: str(getattr(value, "__name__", value)),
)
def test_nothing_is_counted_twice_or_left_out(model: Any, plan: Plan) -> None:
    attachment = attach(model(), plan)
    found = break_down(attachment)
    groups = attachment.parameter_groups()
    sizes = {name: sum(p.numel() for p in each) for name, each in groups.items()}
    assert found.totals == {name: sizes.get(name, 0) for name in found.methods}
    assert sum(found.gates.values()) == sizes.get("gate", 0)
    assert (found.norms, found.head) == (sizes.get("norm", 0), sizes.get("head", 0))
    trained = sum(p.numel() for p in attachment.model.parameters() if p.requires_grad)
    besides = sum(found.gates.values()) + found.norms + found.head
    assert sum(row.total for row in found.rows) + sum(found.outside.values()) + besides == trained


def outside(attachment: Attachment) -> dict[str, int]:
    return {name: count for name, count in break_down(attachment).outside.items() if count}


def test_shared_parameters_are_outside_of_the_blocks() -> None:
    """The prefix's table, both layers of its MLP; Compacter's n rules of n by n; a prompt."""
    mlp = 10 * 16 + (16 * 512 + 512) + (512 * 64 + 64)
    assert outside(attach(small_bert(), UniPELT())) == {"prefix": mlp}
    assert outside(attach(small_bert(), Plan.uniform(Compacter(bottleneck=4)))) == {"compacter": 64}
    own = Plan.uniform(Compacter(bottleneck=4, share_rule=False))
    assert outside(attach(small_bert(), own)) == {}
    assert outside(attach(small_bert(), Plan.uniform(Prompt(length=3)))) == {"prompt": 48}


def test_a_block_of_masks_has_its_rows_of_every_profile() -> None:
    """3 profiles, one site: 2 rows of 6 logits and a norm of 2 times 4; heads of 2 times 17."""
    attachment = attach(small_bert(), PROFILES)
    assert [row.methods for row in break_down(attachment).rows] == [
        {"xpeft": MethodInBlock("m=4", 3 * (2 * 6 + 2 * 4))}
    ] * 2
    assert outside(attachment) == {"xpeft": 3 * 2 * 17}


@pytest.mark.slow
def test_stacked_bottlenecks_are_counted_by_block() -> None:
    """Compacter in two blocks, of one shape each, and in one of them."""
    for method in (Compacter(bottleneck=4), LowRankAdapter(bottleneck=3)):
        both = break_down(attach(small_t5(), Plan.uniform(method)))
        one = break_down(attach(small_t5(), Plan([Group([method], [1], "decoder")])))
        assert both.rows[3].total == one.rows[3].total > 0
        assert [row.total for row in one.rows[:3]] == [0, 0, 0]


def test_stacked_bottlenecks_of_different_widths_are_counted_by_site() -> None:
    """Rank 1 and m=2: d + 2 down, 2 + d up, biases of 2 and d; 3 d + 6."""
    site = next(s for s in examine(small_bert()).sites if s.role == "ffn")
    sites = [replace(site, block=block) for block in range(3)]
    shapes = [Shape(width, 2, width) for width in (4, 8, 4)]
    stack = StackedBottlenecks("", sites, shapes, None, n=1, rank=1, own=None)
    found = {site.block: count for site, count in stack.parameters_by_site().items()}
    assert found == {0: 18, 1: 30, 2: 18}


def test_groups_of_both_stacks_are_named_in_both() -> None:
    found = break_down(attach(small_t5(4), S4(0.3, stacks="per_stack")))
    assert [row.group for row in found.rows] == ["1", "2", "3", "4"] * 2
    assert [row.block for row in found.rows[3:5]] == [Block("encoder", 3), Block("decoder", 0)]


def test_groups_of_a_plan_are_numbered_and_may_overlap() -> None:
    plan = Plan([Group([LoRA(r=2)], "0-1"), Group([Adapter(3)], "1-2")])
    found = break_down(attach(small_bert(4), plan))
    assert [row.group for row in found.rows] == ["1", "1+2", "2", "-"]
