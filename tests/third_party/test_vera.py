"""A method of another package: one file, and everything that asks methods knows it."""

from __future__ import annotations

import pytest
import torch
from third_party.vera import VeRA
from zoo import build, inputs, output

from lightning_pelt import Gate, Plan, UniPELT, attach, merge, named_groups
from lightning_pelt.reports.plan_breakdown import break_down
from lightning_pelt.reports.plan_table import format_breakdown
from lightning_pelt.testing import MethodConformance, awaken, tiny_bert


class TestVeRA(MethodConformance):
    compiled = ("bert",)
    method = VeRA(r=4)


class TestGatedVeRA(MethodConformance):
    compiled = ("bert", "gpt2")
    method = VeRA(r=4, gate=Gate())


@pytest.mark.parametrize("name", ["bert", "gpt2", "gpt_neox"])
def test_is_the_formula(name: str) -> None:
    """Merged weights are W + diag(b) B diag(d) A, in fused projections too."""
    model, batch = build(name), inputs(name)
    attachment = attach(model, Plan.uniform(VeRA(r=4)))
    awaken(attachment)
    with torch.no_grad():
        attached = output(model, batch)
        merge(model)
        torch.testing.assert_close(output(model, batch), attached, rtol=0, atol=2e-5)


def test_is_shown_with_its_size_and_counted() -> None:
    attachment = attach(tiny_bert(), UniPELT([VeRA(r=4)]))
    table = format_breakdown(break_down(attachment))
    assert "vera" in table and "r=4" in table
    # Two blocks, query and value: d (4,) and b (32,) each.
    assert attachment.counts["vera"].trained == 2 * 2 * (4 + 32)
    assert attachment.counts["vera"].gates == 2 * 2 * (32 + 1)


def test_decides_on_its_decay() -> None:
    attachment = attach(tiny_bert(), Plan.uniform(VeRA()))
    groups = named_groups(attachment, lr=1e-3, weight_decay=0.1)
    assert {g["name"]: g["weight_decay"] for g in groups} == {"vera": 0.0, "head": 0.1}
