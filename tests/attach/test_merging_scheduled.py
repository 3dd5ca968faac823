"""Merging after a fit whose schedule has set the gates."""

from __future__ import annotations

import pytest
import torch
from callbacks.tiny import Tiny, loader, trainer

from lightning_pelt import Adapter, Gate, LoRA, Plan, merge
from lightning_pelt.attach import find_attachment
from lightning_pelt.callbacks.gate_schedule import GateSchedule
from lightning_pelt.training.phases import Phase

TOKENS = torch.arange(3, 11)[None]


@pytest.mark.slow
def test_what_a_schedule_has_closed_and_half_opened_is_merged(tmp_path):
    """The adapter was closed for good; the constant gate of LoRA stays at a half."""
    methods = [LoRA(r=2, gate=Gate(learned=False)), Adapter(bottleneck=4, gate=Gate())]
    module = Tiny(plan=Plan.uniform(*methods, norms=True))
    phases = {
        "lora": [Phase(state="ramp", start=0.5, end=0.5, until=9)],
        "adapter": [Phase(until=1), Phase(state="closed")],
    }
    schedule = GateSchedule(phases, unit="step")
    trainer(tmp_path, schedule).fit(module, loader(3))
    gates = module.attachment.gates
    assert {gate.open for gate in gates.values() if gate.method == "adapter"} == {0.0}
    assert {gate.open for gate in gates.values() if gate.method == "lora"} == {0.5}
    model = module.attachment.model.eval()
    with torch.no_grad():
        before = model(input_ids=TOKENS).logits
        assert merge(module) is model
        assert find_attachment(module) is None
        torch.testing.assert_close(model(input_ids=TOKENS).logits, before, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "merged")
    again = type(model).from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=TOKENS).logits, before, rtol=1e-5, atol=1e-5)
