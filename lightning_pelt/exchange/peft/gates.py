"""Gates on the way to a format that has none: a constant one is a factor, others are refused."""

from __future__ import annotations

from lightning_pelt.attach.attachment import Attachment
from lightning_pelt.methods.gate import GateView


def refuse_learned_gates(attachment: Attachment) -> None:
    """Raise unless every gate of the plan is a constant factor.

    Raises:
        ValueError: a gate is learned, or its layer also runs on tensors that it does not gate.
    """
    for gate in attachment.gates.values():
        if gate.layer.gate.learned:
            raise ValueError(
                f"{gate.method!r} has learned gates, such as {gate.name}, and PEFT's format has "
                "none: what they let pass differs from input to input. distil_lora trains a LoRA "
                "without gates on what this model computes; or train the method with gate=None"
            )
        if gate.layer.read is not None:
            raise ValueError(
                f"the gate {gate.name} belongs to a layer that also runs on tensors that the gate "
                "leaves alone, such as DeBERTa's positions, and in PEFT's format it would change "
                "them too: train the method with gate=None"
            )


def factor(gate: GateView | None, scale: float) -> float:
    """The constant factor of a submodule: ``scale``, or the openness of a gate in its place."""
    return scale if gate is None else gate.open
