"""What a schedule asks of a plan and a trainer, checked at the start of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_pelt.callbacks._attached import Attached
from lightning_pelt.training.phases import Phase
from lightning_pelt.utils.errors import unknown

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def check_method(attached: Attached, method: str, phases: Sequence[Phase]) -> None:
    """Check that a method exists, and that it has gates if its phases close it.

    Raises:
        ValueError: the plan lacks the method, or the method lacks gates.
    """
    if method not in attached.names:
        raise unknown("method in a schedule", method, attached.names)
    own = [m for m in attached.methods if m.name == method]
    gated = bool(own) and all(m.gate is not None for m in own)
    if not gated and any(phase.state != "open" for phase in phases):
        raise ValueError(
            f"{method!r} has no gates{' in some blocks' if len(own) > 1 else ''}, so a schedule "
            "can hold it or scale its learning rate, but not close or ramp it: give the method "
            "gate=Gate(), or gate=Gate(learned=False) for a gate that only schedules change"
        )


def check_pruning(attached: Attached, below: float, trainer: Trainer) -> None:
    """Check that there are gates to prune, and warn if no validation will measure them.

    Raises:
        ValueError: no method has a gate.
    """
    if not attached.gates:
        raise ValueError(
            f"prune_below={below} has nothing to prune: no method of this plan has a gate. Give a "
            "method gate=Gate(), use a gated plan such as UniPELT(), or remove prune_below"
        )
    if not trainer.enable_validation:
        rank_zero_warn(
            f"prune_below={below} prunes after validations, and this fit has none: give a "
            "validation loader, and limit_val_batches above 0"
        )
