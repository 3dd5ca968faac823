"""A method on the residual stream, which no linear layer reads or writes."""

from __future__ import annotations

import pytest
import torch
from third_party.loreft import LoReFT
from zoo import build, inputs, output

from lightning_pelt import Gate, LoRA, Plan, UniPELT, attach, merge, named_groups
from lightning_pelt.reports.plan_breakdown import break_down
from lightning_pelt.reports.plan_table import format_breakdown
from lightning_pelt.testing import MethodConformance, awaken, tiny_bert


class TestLoReFT(MethodConformance):
    compiled = ("bert",)
    method = LoReFT()


class TestGatedLoReFT(MethodConformance):
    compiled = ("bert", "gpt2")
    method = LoReFT(gate=Gate())


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "vit"])
def test_is_the_formula_on_the_output_of_a_block(name: str) -> None:
    model, batch = build(name), inputs(name)
    attachment = attach(model, Plan.uniform(LoReFT(r=2)))
    awaken(attachment)
    site = attachment.anatomy.select("block")[-1]
    (module,) = [m for m in attachment.submodules["loreft"] if m.path == site.path]
    seen: dict[str, torch.Tensor] = {}
    block = model.get_submodule(site.path)
    hooks = list(block._forward_hooks.values())

    def first(value: object) -> torch.Tensor:
        return value[0] if isinstance(value, tuple) else value  # type: ignore[index, return-value]

    block._forward_hooks.clear()
    block.register_forward_hook(lambda m, a, o: seen.__setitem__("before", first(o)))
    for hook in hooks:
        block.register_forward_hook(hook)
    block.register_forward_hook(lambda m, a, o: seen.__setitem__("after", first(o)))
    with torch.no_grad():
        output(model, batch)
    h, R = seen["before"], module.R
    expected = h + (h @ module.W.weight.T + module.W.bias - h @ R.T) @ R
    torch.testing.assert_close(seen["after"], expected, rtol=0, atol=1e-5)


def test_a_pooled_gate_reads_real_tokens_of_the_output() -> None:
    """Longer padding does not change the gate."""
    model, batch = build("bert"), inputs("bert")
    attachment = attach(model, UniPELT([LoReFT()]))
    awaken(attachment)
    gate = attachment.gates["01/loreft"]
    with torch.no_grad():
        output(model, batch)
        before = gate.value
        more = {n: torch.nn.functional.pad(t, (0, 3)) for n, t in batch.items()}
        output(model, more)
    assert before is not None and gate.value is not None
    torch.testing.assert_close(gate.value, before, rtol=0, atol=1e-6)


def test_is_shown_counted_and_refused_by_merge() -> None:
    attachment = attach(tiny_bert(), Plan.uniform(LoReFT(r=3), LoRA()))
    table = format_breakdown(break_down(attachment))
    assert "loreft" in table and "r=3" in table
    assert attachment.counts["loreft"].trained == 2 * (3 * 32 + 3 * 32 + 3)
    groups = named_groups(attachment, lr=1e-3, weight_decay=0.1)
    assert {g["name"]: g["weight_decay"] for g in groups}["loreft"] == 0.1
    with pytest.raises(ValueError, match=r"LoReFT cannot be merged"):
        merge(attachment.model)
