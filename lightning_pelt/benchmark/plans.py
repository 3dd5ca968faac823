"""The plans that are compared."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from transformers import BertForSequenceClassification

from lightning_pelt.attach import attach
from lightning_pelt.benchmark.timing import Prepare, frozen_floor
from lightning_pelt.methods import (
    IA3,
    XPEFT,
    Adapter,
    BitFit,
    Compacter,
    LoRA,
    LowRankAdapter,
    Prefix,
)
from lightning_pelt.methods.xpeft import RandomBank
from lightning_pelt.plans import FullFineTuning, HeadOnly, Plan, UniPELT

FLOOR, FULL = "floor", "full"
APL = "unipelt-apl"
# None is the frozen floor, which is not a plan.
PLANS: dict[str, Callable[[], Plan] | None] = {
    FLOOR: None,
    FULL: FullFineTuning,
    "head": HeadOnly,
    "lora": lambda: Plan.uniform(LoRA(r=8)),
    "adapter": lambda: Plan.uniform(Adapter()),
    "prefix": lambda: Plan.uniform(Prefix()),
    "prefix-flat": lambda: Plan.uniform(Prefix(mlp=None)),
    "bitfit": lambda: Plan.uniform(BitFit()),
    "ia3": lambda: Plan.uniform(IA3()),
    "unipelt-ap": lambda: UniPELT([Adapter(), Prefix()]),
    APL: UniPELT,
    "apl-ungated": lambda: Plan.uniform(Adapter(), Prefix(), LoRA()),
    "adapter-both": lambda: Plan.uniform(_dense("attention", "ffn"), norms=True),
    "adapter-ffn": lambda: Plan.uniform(_dense("ffn"), norms=True),
    "compacter": lambda: Plan.uniform(Compacter()),
    "compacter++": lambda: Plan.uniform(Compacter(sites="compacter++")),
    "phm": lambda: Plan.uniform(Compacter(n=12, share_rule=False, factorized=False)),
    "low-rank": lambda: Plan.uniform(LowRankAdapter()),
    "xpeft-100": lambda: Plan.uniform(XPEFT(bank=RandomBank(size=100))),
    "xpeft-800": lambda: Plan.uniform(XPEFT(bank=RandomBank(size=800))),
}
# The reference of a plan has the same bottleneck at the same sites.
REFERENCES = {
    "compacter": "adapter-both",
    "compacter++": "adapter-ffn",
    "phm": "adapter-both",
    "low-rank": "adapter-both",
    "xpeft-100": "adapter",
    "xpeft-800": "adapter",
}


def _dense(*sites: str) -> Adapter:
    return Adapter(reduction_factor=32, sites=sites, placement="sequential", activation="gelu_new")


def preparation(name: str) -> Prepare:
    """What makes the plan ``name`` of a model.

    Raises:
        KeyError: ``PLANS`` has no such plan.
    """
    make = PLANS[name]
    if make is None:
        return frozen_floor

    def prepare(model: BertForSequenceClassification) -> nn.Module:
        attach(model, make())
        return model

    return prepare
