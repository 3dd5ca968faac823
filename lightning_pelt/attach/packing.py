"""Checks that a model with its plan keeps the examples of packed rows apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lightning_pelt.anatomy import packed_rows

if TYPE_CHECKING:
    from lightning_pelt.attach.attachment import Attachment


def check_packing(attachment: Attachment, *, rows: int = 1) -> None:
    """Check that the model with its plan can be trained on packed rows, see :func:`packing_fault`.

    Raises:
        ValueError: it cannot. The message names the model and the remedy.

    Example:
        >>> from lightning_pelt import LoRA, Plan, attach
        >>> from lightning_pelt.testing import tiny_llama
        >>> check_packing(attach(tiny_llama(), Plan.uniform(LoRA())), rows=4)
    """
    problem = packing_fault(attachment, rows=rows)
    if problem is not None:
        raise ValueError(problem)


def packing_fault(attachment: Attachment, *, rows: int = 1) -> str | None:
    """Why the model with its plan cannot be trained on packed rows; None if it can.

    Packed rows have ``input_ids`` and ``position_ids`` that start with 0 at each example, and no
    ``attention_mask``. The model runs on a few tokens, in eval mode and without gradients. Its
    modes, its gates and the global random state stay as they are. Where a strategy shards the
    model, all processes must call it.

    Args:
        attachment: of the model.
        rows: of the batches in training.
    """
    submodules = [module for modules in attachment.submodules.values() for module in modules]
    seen = {gate.layer: gate.layer.last for gate in attachment.gates.values()}

    @contextmanager
    def context(count: int) -> Iterator[None]:
        with ExitStack() as entered:
            for submodule in submodules:
                entered.enter_context(submodule.trial(count))
            yield

    try:
        return packed_rows.packing_fault(attachment.model, rows=rows, context=context)
    finally:
        for layer, last in seen.items():
            layer.last = last
