"""Plans that train the norms of the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from zoo import build

from lightning_pelt import (
    Adapter,
    Compacter,
    LoRA,
    LowRankAdapter,
    Plan,
    UniPELT,
    attach,
    load_adapters,
    merge,
    save_adapters,
)
from lightning_pelt.plans import from_config
from lightning_pelt.testing import awaken, tiny_bert
from lightning_pelt.training.param_groups import named_groups

TOKENS = torch.arange(3, 19).view(2, 8)
PLAN = Plan.uniform(LoRA(r=2), norms=True)


def run(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def test_papers_decide_unless_the_plan_does() -> None:
    assert Plan.uniform(Compacter()).norms
    assert Plan.uniform(LoRA(), LowRankAdapter()).norms
    assert not Plan.uniform(Adapter(), LoRA()).norms
    assert not Plan.uniform(Compacter(), norms=False).norms
    assert not UniPELT([Compacter()]).norms
    assert UniPELT([Compacter()], norms=True).norms


@pytest.mark.parametrize("plan", [PLAN, UniPELT([LoRA()], norms=True), Plan.uniform(Compacter())])
def test_survives_its_configuration(plan: Plan) -> None:
    again = from_config(plan.to_config())
    assert again == plan
    assert again.norms
    assert "norms=True" in repr(plan)


def test_every_norm_of_the_base_is_trained_and_nothing_else() -> None:
    model = tiny_bert()
    attachment = attach(model, PLAN)
    trained = {n for n, p in model.named_parameters() if p.requires_grad and "pelt" not in n}
    expected = {n for n, _ in model.named_parameters() if "LayerNorm" in n}
    assert trained == expected | attachment.head
    assert attachment.norms == expected
    assert expected <= attachment.owned
    assert not expected & attachment.base
    assert attachment.counts["norm"].trained == 5 * 64
    groups = named_groups(attachment, lr=1.0, lrs={"norm": 0.1})
    assert {group["name"]: group["lr"] for group in groups} == {"lora": 1, "norm": 0.1, "head": 1}


def test_final_norms_are_trained() -> None:
    attachment = attach(build("t5"), PLAN)
    assert "encoder.final_layer_norm.weight" in attachment.norms


def test_detach_restores_the_norms() -> None:
    model = tiny_bert()
    before = run(model)
    attachment = attach(model, PLAN)
    awaken(attachment)
    assert not torch.equal(run(model), before)
    attachment.detach()
    assert torch.equal(run(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny_bert()
    awaken(attach(model, PLAN))
    save_adapters(model, tmp_path)
    fresh = tiny_bert()
    load_adapters(fresh, tmp_path)
    assert torch.equal(run(fresh), run(model))


def test_merging_keeps_trained_norms() -> None:
    model = tiny_bert()
    awaken(attach(model, PLAN))
    trained = run(model)
    torch.testing.assert_close(run(merge(model)), trained, rtol=0, atol=1e-5)
