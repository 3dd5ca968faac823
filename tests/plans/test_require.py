"""What is given instead of a plan is named, with what to write instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lightning_pelt
from lightning_pelt import Group, HeadOnly, LoRA, PELTModule, Plan, UniPELT, attach
from lightning_pelt.plans.require import require_plan
from lightning_pelt.testing import tiny_bert

WRONG: list[Any] = [
    UniPELT,
    HeadOnly,
    LoRA,
    LoRA(),
    "unipelt",
    "UniPelt",
    "Lora",
    "ia3",
    Group([LoRA()]),
    [LoRA()],
    [Group([LoRA()])],
    Plan,
]


def written(message: str, given: Any) -> Any:
    """The value of the expression that a message says to write."""
    names = {**vars(lightning_pelt), "group": given, "groups": given, "methods": given}
    names |= {name: getattr(lightning_pelt, name) for name in lightning_pelt.__all__}
    return eval(message.partition("write ")[2], names)


@pytest.mark.parametrize("given", WRONG, ids=str)
def test_the_remedy_is_a_plan(given):
    with pytest.raises(ValueError, match=r"plan is .*, expected a plan: write") as error:
        require_plan(given)
    plan = written(str(error.value), given)
    attach(tiny_bert(), plan)


@pytest.mark.parametrize("given", [None, 3, "something else", [], torch.nn.Linear, {"r": 8}])
def test_anything_else_is_named(given):
    with pytest.raises(ValueError, match=r"plan is .*expected a plan: (give one such as|rebuild)"):
        require_plan(given)


def test_a_plan_is_returned():
    plan = UniPELT()
    assert require_plan(plan) is plan


@pytest.mark.parametrize("given", ["unipelt", UniPELT, LoRA()], ids=str)
def test_attach_and_the_module_ask_for_one(given):
    with pytest.raises(ValueError, match="expected a plan"):
        attach(tiny_bert(), given)
    with pytest.raises(ValueError, match="expected a plan"):
        PELTModule("nothing", given)


@pytest.mark.parametrize("model", ["bert-base-uncased", None, UniPELT()])
def test_what_is_no_model_is_named_too(model):
    with pytest.raises(ValueError, match=r"model is .*expected a Hugging Face model.*load it"):
        attach(model, UniPELT())
